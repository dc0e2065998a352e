"""``turboquant_*``: keys by an optimal quantiser of Gaussians, values by equal steps.

A key of 3 or 4 bits is its norm, in float16, times a unit vector that is turned by a Hadamard
matrix and then rounded, number by number, to the nearest of the ``2^bits`` centroids of a normal
distribution of variance ``1 / head_dim``; reading scales the centroids' vector back to unit norm.
Keys of 8 bits are ``float8_e4m3fn``. A value is

    scale = (max v - min v) / (2^bits - 1),   stored = round((v - min v) / scale)

with scale and minimum in float16. The first two and the last two layers are not quantised. vLLM
lets the first chunk of a prompt attend to exact keys and values, and all later tokens to these;
here, every token attends to these. Source: ``vllm/v1/attention/ops/triton_turboquant_store.py``,
``triton_turboquant_decode.py``, ``vllm/model_executor/layers/quantization/turboquant/``.
"""

import math
from functools import cache, partial

import torch
from torch import Tensor

from conversion.evaluation.quantised_cache.fp8 import e4m3
from conversion.evaluation.quantised_cache.hadamard import hadamard, largest_power_of_2
from conversion.evaluation.quantised_cache.kind import CacheKind

EXACT_LAYERS = 2
NORM_BYTES, SCALE_AND_MINIMUM_BYTES = 2, 4
SMALLEST_SCALE, SMALLEST_NORM, SMALLEST_SQUARE = 1e-8, 1e-8, 1e-16
FP8_BITS = 8
# Of vLLM's solver of the Lloyd-Max conditions.
STEPS, TOLERANCE, REACH, SLICES = 200, 1e-10, 3.5, 200


def kind(key_bits: int, value_bits: int) -> CacheKind:
    """Make the cache of keys and values with so many bits a number."""

    def bytes_per_head(head_dim: int) -> int:
        key = head_dim * key_bits // 8 + (0 if key_bits == FP8_BITS else NORM_BYTES)
        value = head_dim * value_bits // 8 + SCALE_AND_MINIMUM_BYTES
        return key + value + (key + value) % 2

    keys = e4m3 if key_bits == FP8_BITS else partial(_keys, bits=key_bits)
    return CacheKind(
        keys, partial(_values, bits=value_bits), bytes_per_head, _unsupported_reason, EXACT_LAYERS
    )


def _unsupported_reason(head_dim: int) -> str | None:
    if head_dim < 8 or largest_power_of_2(head_dim) != head_dim:
        return f"head_dim {head_dim} is no power of two, or less than 8"
    return None


def _keys(x: Tensor, bits: int) -> Tensor:
    d = x.shape[-1]
    norm = x.norm(dim=-1, keepdim=True)  # [..., 1]
    y = hadamard(x / (norm + SMALLEST_NORM)) / math.sqrt(d)  # [..., d]
    centroids = lloyd_max(d, bits).to(x.device)
    borders = (centroids[1:] + centroids[:-1]) / 2
    read = centroids[torch.bucketize(y, borders, right=True)]
    read = read / (read.square().sum(-1, keepdim=True) + SMALLEST_SQUARE).sqrt()
    turned: Tensor = hadamard(read) / math.sqrt(d) * norm.half().float()
    return turned


def _values(x: Tensor, bits: int) -> Tensor:
    low, high = x.aminmax(dim=-1, keepdim=True)
    largest = 2**bits - 1
    scale = ((high - low) / largest).clamp_min(SMALLEST_SCALE)  # [..., 1]
    stored = ((x - low) / scale + 0.5).trunc().clamp(0, largest)
    read: Tensor = stored * scale.half().float() + low.half().float()
    return read


@cache
def lloyd_max(d: int, bits: int) -> Tensor:
    """Solve the Lloyd-Max conditions for a normal distribution of variance ``1 / d``.

    Each level is the mean of its cell, and each border lies between two levels (Lloyd 1982). With
    vLLM's integration, a trapezoidal rule, so that levels are equal to vLLM's.

    Returns:
        levels, rising  # [2^bits], float32
    """
    sigma = 1 / math.sqrt(d)
    reach, count = REACH * sigma, 2**bits
    levels: Tensor = -reach + 2 * reach * (torch.arange(count, dtype=torch.float64) + 0.5) / count
    steps = torch.linspace(0, 1, SLICES + 1, dtype=torch.float64)
    weights = torch.ones(SLICES + 1, dtype=torch.float64)
    weights[[0, -1]] = 0.5
    outer = torch.tensor([3 * reach], dtype=torch.float64)
    for _ in range(STEPS):
        edges = torch.cat((-outer, (levels[1:] + levels[:-1]) / 2, outer))
        x = edges[:-1, None] + edges.diff()[:, None] * steps  # [count, SLICES + 1]
        density = weights * torch.exp(-x.square() / (2 * sigma**2))
        better = (x * density).sum(1) / density.sum(1)
        moved = float((better - levels).abs().max())
        if moved < TOLERANCE:
            break
        levels = better
    return levels.float()
