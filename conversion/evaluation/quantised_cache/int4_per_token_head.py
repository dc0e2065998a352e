"""``int4_per_token_head``: 4 bits and, for every head of a token, a scale and a zero point.

Heads are turned by a randomised Hadamard transform, ``y = H D x`` with fixed signs ``D``, block by
block where ``head_dim`` is no power of two:

    scale = (max y - min y) / 15,   zero = round(-min y / scale),   stored = round(y / scale) + zero

each clamped to 0..15. The zero point lies in the last 4 bits of the float32 scale. Source:
``vllm/v1/attention/ops/int4_per_token_head.py``, ``_reshape_cache_int4_kernel``, ``single_rht``.
"""

from functools import cache

import torch
from torch import Tensor

from conversion.evaluation.quantised_cache.hadamard import hadamard, largest_power_of_2
from conversion.evaluation.quantised_cache.kind import CacheKind

LEVELS = 15.0
SMALLEST_SCALE = 1e-6
SCALE_BYTES = 4
ZERO_POINT_BITS = 4
SEED = 0x9E3779B9


@cache
def _signs(block: int) -> Tensor:
    generator = torch.Generator().manual_seed(SEED)
    return 2 * torch.bernoulli(torch.full((block,), 0.5), generator=generator) - 1  # [block]


def _rounded(x: Tensor) -> Tensor:
    """Round halves away from zero."""
    return (x + torch.where(x >= 0, 0.5, -0.5)).trunc()


def _int4(x: Tensor) -> Tensor:
    block = largest_power_of_2(x.shape[-1])
    signs = _signs(block).to(x.device)
    y = hadamard(x.unflatten(-1, (-1, block)) * signs).flatten(-2)  # [..., head_dim]
    low, high = y.aminmax(dim=-1, keepdim=True)
    scale = ((high - low) / LEVELS).clamp_min(SMALLEST_SCALE)  # [..., 1]
    zero = _rounded(-low / scale).clamp(0, LEVELS)
    stored = _rounded(y * (1 / scale) + zero).clamp(0, LEVELS)
    kept = (scale.float().view(torch.int32) & -(1 << ZERO_POINT_BITS)).view(torch.float32)
    read = ((stored - zero) * kept).unflatten(-1, (-1, block))
    # H H = block I, and D D = I.
    return (hadamard(read) * signs / block).flatten(-2)


def _bytes_per_head(head_dim: int) -> int:
    return 2 * (head_dim // 2 + SCALE_BYTES)


def _unsupported_reason(head_dim: int) -> str | None:
    return f"head_dim {head_dim} is odd" if head_dim % 2 else None


KIND = CacheKind(_int4, _int4, _bytes_per_head, _unsupported_reason)
