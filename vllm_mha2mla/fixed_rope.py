"""RoPE and the longest context, which a converted model has from its conversion.

The frequencies are stored with the weights, each with the pair of dimensions that it turns. Another
scaling of RoPE cannot be worked into them any more: it belongs before the conversion.
"""

from collections.abc import Mapping
from typing import Any

from vllm_mha2mla.config import FIXED_KEYS

CONTEXT = "max_position_embeddings"
WAY_OUT = "set it in the original's config.json and convert again"


def other_rope(stored: Mapping[str, Any], asked: Mapping[str, Any]) -> str | None:
    """The words against keys of a config that differ from the checkpoint's, if any does.

    Args:
        stored: the checkpoint's config.
        asked: the values that are to take their place.
    """
    for key in FIXED_KEYS:
        if key in asked and asked[key] != stored.get(key):
            return f"{key} cannot be changed in a converted model; {WAY_OUT}"
    longest = longest_context(stored)
    if longest is not None and (asked.get(CONTEXT) or 0) > longest:
        return f"{CONTEXT} {asked[CONTEXT]}: {too_long(longest)}"
    return None


def longest_context(stored: Mapping[str, Any]) -> int | None:
    """Tokens that a checkpoint's config allows, as vLLM counts them; ``None`` where it is silent.

    Args:
        stored: the checkpoint's config. Its length is before a linear scaling, and after others.
    """
    length = stored.get(CONTEXT)
    rope = stored.get("rope_parameters") or {}
    # One set, or one for each kind of layer.
    sets = [rope] if "rope_type" in rope else [x for x in rope.values() if isinstance(x, Mapping)]
    factors = [x.get("factor") or 1.0 for x in sets if x.get("rope_type") == "linear"]
    return None if length is None else int(length * max(factors, default=1.0))


def too_long(longest: int) -> str:
    """The words against a longer context."""
    return (
        f"the frequencies of this converted model are for {longest} tokens; leave it out, or "
        "scale RoPE in the original's config.json and convert again"
    )
