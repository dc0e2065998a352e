"""Checkpoints of compressed-tensors (llm-compressor): integers or fp8, alone or packed.

A quantised matrix ``X`` is stored as ``X.weight`` or ``X.weight_packed`` (with ``X.weight_shape``),
``X.weight_scale`` and, where they are not zero, ``X.weight_zero_point``; the groups of
activation-ordered columns are ``X.weight_g_idx``
(https://github.com/vllm-project/compressed-tensors).
"""

import math
from collections.abc import Mapping
from typing import Any

from conversion.source.scaled import WORD_BITS, Read, ScaledWeight
from conversion.source.tensor_info import TensorInfo

FORMATS = {"naive-quantized", "int-quantized", "float-quantized", "pack-quantized"}
MIXED = "mixed-precision"


def unreadable(settings: Mapping[str, Any]) -> str | None:
    """Say why a ``quantization_config`` is not read; ``None`` if it is."""
    groups = settings.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        return "it has no config_groups"
    whole = settings.get("format")
    formats = {
        group.get("format") or whole for group in groups.values() if isinstance(group, Mapping)
    }
    others = sorted(str(one) for one in formats - FORMATS - {MIXED})
    if others:
        return f"format {', '.join(others)}"
    if settings.get("quantization_status", "compressed") != "compressed":
        return f"quantization_status {settings['quantization_status']!r}"
    if (settings.get("sparsity_config") or {}).get("format", "dense") != "dense":
        return "its weights are sparse, too"
    if settings.get("transform_config"):
        return "its weights are transformed, too (transform_config)"
    return None


def weights(
    settings: Mapping[str, Any], stored: Mapping[str, TensorInfo], read: Read
) -> dict[str, ScaledWeight]:
    """The quantised matrices of a checkpoint by their names.

    Args:
        settings: the ``quantization_config``.
        stored: every tensor of the files.
        read: reads one of them.

    Raises:
        ValueError: parts do not fit each other; says which.
    """
    schemes = [group.get("weights") or {} for group in settings["config_groups"].values()]
    found = {}
    for name in stored:
        module = name.removesuffix(".weight_scale")
        if module != name:
            found[f"{module}.weight"] = _weight(module, schemes, stored, read)
    if not found:
        raise ValueError("none of its matrices is")
    return found


def _weight(
    module: str, schemes: list[Mapping[str, Any]], stored: Mapping[str, TensorInfo], read: Read
) -> ScaledWeight:
    packed = f"{module}.weight_packed" in stored
    values = f"{module}.weight_packed" if packed else f"{module}.weight"
    if values not in stored or len(stored[values].shape) != 2:
        raise ValueError(f"{module}.weight_scale has no matrix beside it")
    rows, columns = stored[values].shape
    if packed:
        if f"{module}.weight_shape" not in stored:
            raise ValueError(f"{module}.weight_shape is missing")
        whole = read(f"{module}.weight_shape", slice(None)).tolist()
        rows, columns = (int(size) for size in whole)
    zero, groups = f"{module}.weight_zero_point", f"{module}.weight_g_idx"
    candidates = {
        ScaledWeight(
            shape=(rows, columns),
            values=values,
            scale=f"{module}.weight_scale",
            block_rows=block_rows,
            block_columns=block_columns,
            bits=int(scheme.get("num_bits", 8)) if packed else None,
            zero=zero if zero in stored else None,
            groups=groups if groups in stored else None,
        )
        for scheme in schemes
        for block_rows, block_columns in [_block(scheme, columns)]
    }
    fitting = [weight for weight in candidates if _fits(weight, stored)]
    if len(fitting) != 1:
        raise ValueError(f"{module}.weight_scale fits {len(fitting)} of its config_groups")
    return fitting[0]


def _block(scheme: Mapping[str, Any], columns: int) -> tuple[int, int]:
    """Rows and columns that share a scale; 0 for all."""
    strategy = scheme.get("strategy")
    group = int(scheme.get("group_size") or 0)
    if strategy is None:
        strategy = "tensor" if not group else "group" if group > 0 else "channel"
    if strategy == "tensor":
        return 0, 0
    if strategy == "channel":
        return 1, 0
    if strategy == "group" and group > 0:
        return 1, min(group, columns)
    if strategy == "block" and scheme.get("block_structure"):
        height, width = scheme["block_structure"]
        return int(height), int(width)
    raise ValueError(f"strategy {strategy!r} of the weights is not read")


def _fits(weight: ScaledWeight, stored: Mapping[str, TensorInfo]) -> bool:
    """Tell whether the stored parts have the sizes that this reading of them needs."""
    scales = weight.scales_shape()
    fits = math.prod(stored[weight.scale].shape) == math.prod(scales)
    if weight.bits is not None:
        per_word = WORD_BITS // weight.bits if 1 <= weight.bits <= 8 else 0
        if not per_word:
            return False
        words = -(-weight.shape[1] // per_word)
        fits = fits and stored[weight.values].shape == (weight.shape[0], words)
        scales = (-(-scales[0] // per_word), scales[1])
    if weight.zero is not None:
        fits = fits and math.prod(stored[weight.zero].shape) == math.prod(scales)
    if weight.groups is not None:
        fits = fits and stored[weight.groups].shape == (weight.shape[1],)
    return fits
