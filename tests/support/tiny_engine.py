"""An engine for a tiny converted checkpoint: what it is asked, and with how much cache."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tests.support.engine import greedy_sampling, run_gpu_backend
from tests.support.tiny_converted import TINY_WIDTHS

LENGTHS = (1, 16, 17, 40, 100, 190)
NEW_TOKENS = 48
SAMPLING = greedy_sampling(NEW_TOKENS)
BYTES_PER_TOKEN = 4 * sum(rank + rope for rank, rope in TINY_WIDTHS)  # float32
CACHE_TOKENS = 1024


def tiny_engine(
    checkpoint: Path,
    prompts: list[list[int]],
    block_size: int,
    tokens: int = CACHE_TOKENS,
    **changes: Any,
) -> dict[str, Any]:
    """Return a specification for ``run_engine.py``: all prompts in one batch.

    Args:
        checkpoint: of a tiny converted model.
        prompts: the batch.
        block_size: tokens per block of the cache.
        tokens: that fit into the cache if no layer is padded to the widest.
        changes: other arguments of ``LLM``.
    """
    usual = {
        "model": str(checkpoint),
        "dtype": "float32",
        "skip_tokenizer_init": True,
        "max_model_len": 256,
        "enforce_eager": True,
        "block_size": block_size,
        "kv_cache_memory_bytes": tokens * BYTES_PER_TOKEN,
    }
    return {"llm": usual | changes, "steps": [{"prompts": prompts, "sampling": SAMPLING}]}


def random_prompts(lengths: Sequence[int]) -> list[list[int]]:
    """Token ids of the tiny models, the same in every call."""
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(256, (length,), generator=generator).tolist() for length in lengths]


def tiny_gpu_run(
    checkpoint: Path, prompts: list[list[int]], new_tokens: int, **settings: Any
) -> dict[str, Any]:
    """Run all prompts in one batch, twice, through the backend for GPUs; see ``run_gpu_backend``.

    Args:
        checkpoint: of a tiny converted model.
        prompts: the batch.
        new_tokens: to generate for each.
        settings: further arguments of ``LLM``, the size of the cache among them.
    """
    step = {"prompts": prompts, "sampling": greedy_sampling(new_tokens)}
    usual = {
        "model": str(checkpoint),
        "dtype": "float32",
        "skip_tokenizer_init": True,
        "enforce_eager": True,
        "block_size": 16,
        "max_num_seqs": 4,
        "enable_chunked_prefill": True,
    }
    return run_gpu_backend({"llm": usual | settings, "steps": [step, step]})
