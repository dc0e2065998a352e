"""Options of the engine that a converted model would not follow; docs/serving.md has them all.

vLLM asks the attention backends that it chooses itself about most of these, and never ours.
"""

from collections.abc import Iterator
from typing import Any

import vllm.envs as envs

from vllm_mha2mla.errors import UnsupportedEngineError
from vllm_mha2mla.kernels.cuda.choose import option_of


def refuse_options(vllm_config: Any) -> None:
    """Refuse options without effect, and those that have not been shown to be right.

    Raises:
        UnsupportedEngineError: one is set.
    """
    for option, reason in _refused(vllm_config):
        raise UnsupportedEngineError(f"{option}: {reason}; leave it out")


def _refused(vllm_config: Any) -> Iterator[tuple[str, str]]:
    parallel = vllm_config.parallel_config
    whole = "latent attention needs the whole context on each rank"
    if parallel.decode_context_parallel_size > 1:
        yield "--decode-context-parallel-size", whole
    if parallel.prefill_context_parallel_size > 1:
        yield "--prefill-context-parallel-size", whole
    if parallel.use_ubatching:
        yield "--enable-dbo, --ubatch-size", "latent attention takes a step's batch as a whole"
    offload = vllm_config.offload_config
    if offload.uva.cpu_offload_gb or offload.prefetch.offload_group_size:
        yield (
            "--cpu-offload-gb, --offload-group-size",
            "latent attention reads its weights where they were loaded",
        )
    if (
        vllm_config.attention_config.backend is not None
        and option_of(vllm_config.model_config.hf_config) != "vllm"
    ):
        yield "--attention-backend", "a converted model has an attention of its own"
    if envs.VLLM_BATCH_INVARIANT:
        yield (
            "VLLM_BATCH_INVARIANT",
            "latent attention adds in an order that depends on the batch",
        )
