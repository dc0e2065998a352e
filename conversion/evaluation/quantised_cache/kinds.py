"""The kinds of cache by vLLM's names. A new kind is a file and a line here."""

from collections.abc import Sequence
from typing import Any

from conversion.errors import UsageError
from conversion.evaluation.quantised_cache import fp8, int4_per_token_head, per_token_head
from conversion.evaluation.quantised_cache.kind import CacheKind
from conversion.evaluation.quantised_cache.turboquant import kind as turboquant
from vllm_mha2mla.config import source_head_dim

OPTION = "--baseline-kv-cache-dtype"
KINDS: dict[str, CacheKind] = {
    "fp8": fp8.KIND,
    "fp8_e4m3": fp8.KIND,
    "fp8_per_token_head": per_token_head.FP8,
    "int8_per_token_head": per_token_head.INT8,
    "int4_per_token_head": int4_per_token_head.KIND,
    "turboquant_k8v4": turboquant(8, 4),
    "turboquant_4bit_nc": turboquant(4, 4),
    "turboquant_k3v4_nc": turboquant(3, 4),
    "turboquant_3bit_nc": turboquant(3, 3),
}
"""Kinds of cache by the values of vLLM's ``--kv-cache-dtype``."""


def chosen_kinds(names: Sequence[str], config: Any) -> dict[str, CacheKind]:
    """Look kinds of cache up.

    Args:
        names: values of vLLM's ``--kv-cache-dtype``.
        config: the original's config.

    Raises:
        UsageError: an unknown kind, or one that does not take heads of this width.
    """
    for name in names:
        if name not in KINDS:
            raise UsageError(f"{OPTION} {name}: not simulated; choose from {', '.join(KINDS)}")
        if reason := KINDS[name].unsupported_reason(source_head_dim(config)):
            raise UsageError(f"{OPTION} {name}: {reason}; leave it out")
    return {name: KINDS[name] for name in names}
