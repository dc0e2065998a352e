"""Checkpoints of fp8 weights: DeepSeek's and Qwen's blocks, one scale per row, or one per matrix.

``X.weight`` holds float8 numbers, and ``X.weight_scale_inv`` (blocks) or ``X.weight_scale`` (rows,
matrices) what they are multiplied by. The name of the former is historical: it is the scale itself
(arXiv:2412.19437, section 3.3; transformers' ``finegrained_fp8``).
"""

import math
from collections.abc import Mapping
from typing import Any

import torch

from conversion.source.scaled import ScaledWeight
from conversion.source.tensor_info import TensorInfo

FLOAT8 = {torch.float8_e4m3fn, torch.float8_e5m2}
SCALES = (".weight_scale_inv", ".weight_scale")


def weights(
    settings: Mapping[str, Any], stored: Mapping[str, TensorInfo]
) -> dict[str, ScaledWeight]:
    """The quantised matrices of a checkpoint by their names.

    Args:
        settings: the ``quantization_config``.
        stored: every tensor of the files.

    Raises:
        ValueError: a scale does not fit its matrix; says which.
    """
    blocks = settings.get("weight_block_size")
    found = {}
    for name, info in stored.items():
        module = name.removesuffix(".weight")
        if module == name or info.dtype not in FLOAT8:
            continue
        scale = next((module + end for end in SCALES if module + end in stored), None)
        if scale is None or len(info.shape) != 2:
            raise ValueError(f"{name} is {info.dtype} and has no scale")
        rows, columns = info.shape
        count = math.prod(stored[scale].shape)
        readings = [(0, 0), (1, 0)]
        if blocks:
            height, width = blocks
            readings.append((int(height), int(width)))
        made = [ScaledWeight((rows, columns), name, scale, *reading) for reading in readings]
        fitting = [weight for weight in made if math.prod(weight.scales_shape()) == count]
        # One block that covers a matrix is one scale for it.
        if not fitting:
            raise ValueError(f"{scale} of shape {list(stored[scale].shape)} does not fit {name}")
        found[name] = fitting[0] if count == 1 else fitting[-1]
    return found
