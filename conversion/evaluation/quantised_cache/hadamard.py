"""The Walsh-Hadamard transform, which spreads a few large components over all of them."""

import torch
from torch import Tensor


def largest_power_of_2(n: int) -> int:
    """The largest power of two that divides ``n``."""
    return n & -n


def hadamard(x: Tensor) -> Tensor:
    """Multiply rows by Sylvester's Hadamard matrix of ones and minus ones, ``H H = d I``.

    In the order of additions that vLLM's own CPU code has, so that results are equal bit for bit.

    Args:
        x: rows, ``d`` a power of two  # [..., d]
    """
    shape, d = x.shape, x.shape[-1]
    half = 1
    while half < d:
        pairs = x.reshape(*shape[:-1], d // (2 * half), 2, half)
        first, second = pairs.unbind(-2)  # [..., d / (2 half), half] each
        x = torch.stack((first + second, first - second), dim=-2)
        half *= 2
    return x.reshape(shape)
