"""The work of our models when weights have been loaded, and when adapters are."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor
from vllm.config import VllmConfig

from vllm_mha2mla.attention.layer import LatentCacheAttention
from vllm_mha2mla.attention.projections import LatentSelfAttention
from vllm_mha2mla.config import refuse_no_numbers
from vllm_mha2mla.errors import UnsupportedEngineError

BY_HEAD = re.compile(r"\.(kv_b_proj|q_head_proj)\.(\w+)$")
"""Weights that attention multiplies itself, head by head."""


class TellsLayers:
    """A model that tells its latent attention when weights have been loaded."""

    modules: Any
    plain: bool
    """Whether no weight is quantised."""

    def prepare(self, vllm_config: VllmConfig) -> None:
        """Have weights checked when they are loaded, and adapters in an engine that loads any."""
        self.plain = vllm_config.quant_config is None
        if vllm_config.lora_config is not None:
            from vllm_mha2mla.models.adapters import check_adapters

            check_adapters()

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Load what this model reads; see :func:`refuse_quantised`."""
        refused = refuse_quantised(weights, self.plain)
        # mypy does not see the model of vLLM that this class is mixed into.
        loaded: set[str] = super().load_weights(refused)  # type: ignore[misc]
        # Trainers call this of a running engine's model, and nothing after it.
        for module in self.modules():
            if isinstance(module, LatentCacheAttention):
                module.forget_weights()
        return loaded

    def process_weights_after_loading(self) -> None:
        """Called by vLLM at the end of loading."""
        for module in self.modules():
            if isinstance(module, LatentSelfAttention):
                module.weights_loaded()


def refuse_quantised(
    weights: Iterable[tuple[str, Tensor]], plain: bool = False
) -> Iterator[tuple[str, Tensor]]:
    """Pass weights on, unless they are integers that nothing dequantises: vLLM would cast them.

    Args:
        weights: of a checkpoint.
        plain: its config does not call it quantised.

    Raises:
        UnsupportedEngineError: weights of attention's own are quantised.
        CheckpointError: others are, in a ``plain`` checkpoint.
    """
    for name, tensor in weights:
        if plain:
            refuse_no_numbers([(name, str(tensor.dtype))])
        found = BY_HEAD.search(name)
        number = tensor.is_floating_point() and tensor.element_size() > 1
        if found and not (found[2] == "weight" and number):
            raise UnsupportedEngineError(
                f"{name}: quantised weights of {found[1]} are not served; quantise the converted "
                "model again and leave kv_b_proj and q_head_proj as they are (ignore, "
                "modules_to_not_convert)"
            )
        yield name, tensor
