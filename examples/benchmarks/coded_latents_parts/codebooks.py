"""The best scalar codebooks for a Gaussian (Lloyd-Max)."""

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

# Points that stand for the Gaussian, and how far they reach in standard deviations.
POINTS, REACH = 200_001, 6.0
STEPS, PRECISION = 3000, 1e-7


@dataclass(frozen=True)
class Codebook:
    """The values that a number of unit variance is rounded to.

    Attributes:
        levels: rising  # [2**bits]
        borders: between neighbouring levels  # [2**bits - 1]
        distortion: ``D_b``, the mean squared error for a standard normal.
    """

    levels: Tensor
    borders: Tensor
    distortion: float

    def __call__(self, x: Tensor) -> Tensor:
        """The level nearest to each number  # [...]"""
        return self.levels[torch.bucketize(x.contiguous(), self.borders)]


@cache
def gaussian_codebook(bits: int) -> Codebook:
    """The codebook of ``2**bits`` levels with the least squared error for a standard normal.

    Lloyd's two conditions in turn (S. P. Lloyd, "Least squares quantization in PCM", 1982; J. Max,
    1960): a border is half way between its levels, a level is the mean of what is rounded to it.
    """
    x = torch.linspace(-REACH, REACH, POINTS, dtype=torch.float64)
    p = torch.exp(-x.square() / 2)
    start = torch.zeros(1, dtype=torch.float64)
    mass = torch.cat((start, p.cumsum(0)))  # [POINTS + 1]
    moment = torch.cat((start, (p * x).cumsum(0)))
    quantiles = (torch.arange(2**bits, dtype=torch.float64) + 0.5) / 2**bits
    levels = torch.erfinv(2 * quantiles - 1) * math.sqrt(2)
    for _ in range(STEPS):
        borders = (levels[1:] + levels[:-1]) / 2
        cuts = torch.searchsorted(x, borders)
        cuts = torch.cat((cuts.new_zeros(1), cuts, cuts.new_tensor([POINTS])))
        means = (moment[cuts[1:]] - moment[cuts[:-1]]) / (mass[cuts[1:]] - mass[cuts[:-1]])
        moved = float((means - levels).abs().max())
        levels = means
        if moved < PRECISION:
            break
    borders = (levels[1:] + levels[:-1]) / 2
    error = x - levels[torch.bucketize(x, borders)]
    distortion = float((p * error.square()).sum() / p.sum())
    return Codebook(levels.float(), borders.float(), distortion)
