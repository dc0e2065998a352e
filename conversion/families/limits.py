"""Attention that a latent cache cannot serve exactly, whatever the family."""

import math
from typing import Any

from vllm_mha2mla.config import FULL, SLIDING

# These frequencies do not change with the length of the input, so they can be stored.
STATIC_ROPE_TYPES = {"default", "linear", "llama3", "yarn"}


def changes_with_length(config: Any) -> str | None:
    """Say why a config's attention cannot be converted; ``None`` if it can.

    Args:
        config: a source's, of any family.
    """
    return (
        rope_reason(_rope_parameters(config))
        or window_reason(config)
        or _reason_of_keys(config)
        or _reason_of_numbers(config)
    )


def _rope_parameters(config: Any) -> dict[str, Any]:
    """``rope_parameters`` of the layers that attend to everything."""
    parameters: dict[str, Any] = config.rope_parameters or {}
    of_full: dict[str, Any] = parameters.get(FULL, parameters)
    return of_full


def rope_reason(parameters: dict[str, Any]) -> str | None:
    """Say why rotary frequencies cannot be stored; ``None`` if they can.

    Args:
        parameters: ``rope_parameters`` of a config, one set for all layers.
    """
    kind = parameters.get("rope_type", "default")
    if kind not in STATIC_ROPE_TYPES:
        return f"rope_type {kind!r} changes with the input's length"
    if parameters.get("mrope_section"):
        return "its positions are those of images (mrope_section)"
    return None


def part_reason(config: Any) -> str | None:
    """Say that only a part of each head turns, which most families' code does not compute."""
    rope = _rope_parameters(config)
    part = rope.get("partial_rotary_factor", getattr(config, "partial_rotary_factor", None))
    if part in (None, 1):
        return None
    return f"partial_rotary_factor {part} is not what transformers computes for this family"


def window_reason(config: Any) -> str | None:
    """Say why no layer can be converted, or not all that must be; ``None`` if they can."""
    kinds = getattr(config, "layer_types", None)
    others = sorted(set(kinds or ()) - {FULL, SLIDING})
    if others:
        return f"layers of {', '.join(others)} (layer_types) are not softmax attention"
    if SLIDING in (kinds or ()) and getattr(config, "sliding_window", None) is None:
        return "layers slide over a window (layer_types) of no length (sliding_window)"
    if len(kept_layers(config)) == config.num_hidden_layers:
        window = config.sliding_window
        return f"its attention slides over a window of {window} tokens (sliding_window)"
    return None


def kept_layers(config: Any) -> frozenset[int]:
    """The layers that keep their attention, because it slides over a window.

    A window as long as the longest context hides nothing.

    Args:
        config: a source's, of any family.
    """
    window = getattr(config, "sliding_window", None)
    longest = getattr(config, "max_position_embeddings", None)
    if window is not None and longest is not None and window >= longest:
        return frozenset()
    layers = range(config.num_hidden_layers)
    # In families that know no kinds of layers, transformers ignores the key. Those that know
    # ``use_sliding_window`` have no window where it is false; others ignore it.
    kinds = config.layer_types if hasattr(type(config), "layer_types") else None
    if kinds is not None:
        return frozenset(index for index in layers if kinds[index] == SLIDING)
    return frozenset() if window is None else frozenset(layers)


def _reason_of_numbers(config: Any) -> str | None:
    for key in ("rms_norm_eps", "layer_norm_eps"):
        value = getattr(config, key, None)
        if value is not None and not 0 <= value < 1:
            return f"{key} {value} makes its norms infinite"
    longest = getattr(config, "max_position_embeddings", None)
    if longest is not None and longest < 2:
        return f"max_position_embeddings {longest} leaves nothing to attend to"
    theta = _rope_parameters(config).get("rope_theta", 1.0)
    if isinstance(theta, int | float) and not 0 < theta < math.inf:
        return f"rope_theta {theta} gives no frequencies"
    return None


def _reason_of_keys(config: Any) -> str | None:
    if getattr(config, "is_causal", None) is False:
        return "every token attends to all others (is_causal false), and a cache has no use"
    for key in ("attn_logit_softcapping", "final_logit_softcapping", "clip_qkv"):
        if getattr(config, key, None) is not None:
            return f"{key} {getattr(config, key)} is not linear, and not served"
    return None
