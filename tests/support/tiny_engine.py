"""An engine for a tiny converted checkpoint: what it is asked, and with how much cache."""

from pathlib import Path
from typing import Any

from tests.support.engine import greedy_sampling
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
