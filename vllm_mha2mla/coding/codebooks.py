"""The levels that a number of a coded row is rounded to.

Up to 6 bits these are the best levels for a normal distribution (S. P. Lloyd, "Least squares
quantization in PCM", 1982; J. Max, 1960), scaled so that the largest is 127 and rounded to
integers: kernels multiply integers, and bfloat16 holds each of them exactly. 8 bits are evenly
spaced. The numbers stand here, because checkpoints depend on every one of them.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

DENOMINATOR = 128
"""A decoded number is ``scale * level / DENOMINATOR``."""

POSITIVE_LEVELS: Mapping[int, tuple[int, ...]] = MappingProxyType(
    {
        1: (127,),
        2: (38, 127),
        3: (14, 45, 79, 127),
        4: (6, 18, 31, 44, 58, 75, 96, 127),
        6: (
            *(1, 3, 6, 8, 10, 13, 15, 17, 20, 22, 24, 27, 30, 32, 35, 38),
            *(40, 43, 46, 49, 53, 56, 60, 64, 68, 73, 78, 84, 91, 99, 110, 127),
        ),
    }
)
"""The upper half of each codebook of up to 6 bits; the lower half mirrors it."""

# Largest level of the best codebook for a standard normal, by bits; and where 8 bits clip.
LARGEST = {
    1: 0.7978845608028654,
    2: 1.5104176084991887,
    3: 2.1519457045376735,
    4: 2.732589570997517,
    6: 3.7441012708978656,
    8: 4.5 * 127 / DENOMINATOR,
}

BITS = tuple(LARGEST)
"""The bits that a column may have."""

DISTORTION: Mapping[int, float] = MappingProxyType(
    {1: 0.363380, 2: 0.117482, 3: 0.034590, 4: 0.009514, 6: 0.000689, 8: 0.0001036}
)
"""``D(b)``: mean squared error of a standard normal that is rounded to ``b`` bits."""


@dataclass(frozen=True)
class Codebook:
    """The levels of so many bits.

    Attributes:
        bits: of a code.
        levels: integers, rising; a code is an index into them  # [2**bits], float32
        borders: half way between neighbouring ones, over ``DENOMINATOR``  # [2**bits - 1], float32
        gain: standard deviation, relative to the row's scale, of numbers that the levels are best
            for.
    """

    bits: int
    levels: Tensor
    borders: Tensor
    gain: float

    def encode(self, x: Tensor) -> Tensor:
        """The code of each number, relative to the row's scale  # [...], int64"""
        return torch.bucketize(x.contiguous(), self.borders.to(x.device))

    def decode(self, codes: Tensor) -> Tensor:
        """The number of each code, relative to the row's scale  # [...], float32"""
        return self.levels.to(codes.device)[codes] / DENOMINATOR


@functools.cache
def codebook(bits: int) -> Codebook:
    """The codebook of so many bits.

    Raises:
        KeyError: there is none.
    """
    if bits in POSITIVE_LEVELS:
        upper = torch.tensor(POSITIVE_LEVELS[bits], dtype=torch.float32, device="cpu")
        levels = torch.cat((-upper.flip(0), upper))
    else:
        half = 2 ** (bits - 1)
        levels = torch.arange(-half, half, dtype=torch.float32, device="cpu")
    borders = (levels[1:] + levels[:-1]) / (2 * DENOMINATOR)
    return Codebook(bits, levels, borders, float(levels.max()) / DENOMINATOR / LARGEST[bits])
