import math

import pytest
import torch

from vllm_mha2mla.coding.codebooks import BITS, DISTORTION, LARGEST, POSITIVE_LEVELS, codebook

X = torch.linspace(-7, 7, 200_001, dtype=torch.float64)
P = torch.exp(-X.square() / 2)
P /= P.sum()


def lloyd(bits):
    """The best levels for a standard normal: each the mean of what lies nearest to it."""
    normal = torch.distributions.Normal(torch.zeros((), dtype=torch.float64), 1.0)
    levels = torch.linspace(-1, 1, 2**bits, dtype=torch.float64) * (0.8 + 0.5 * bits)
    ends = torch.tensor([math.inf], dtype=torch.float64)
    for _ in range(12_000):
        borders = torch.cat((-ends, (levels[1:] + levels[:-1]) / 2, ends))
        density = torch.exp(-borders.square() / 2) / math.sqrt(2 * math.pi)
        levels = (density[:-1] - density[1:]) / normal.cdf(borders).diff()
    return levels


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6])
def test_levels_are_the_best_for_a_normal(bits):
    best = lloyd(bits)
    assert float(best[-1]) == pytest.approx(LARGEST[bits], abs=1e-8)
    upper = best[2 ** (bits - 1) :] * 127 / best[-1]
    assert upper.round().int().tolist() == list(POSITIVE_LEVELS[bits])


@pytest.mark.parametrize("bits", BITS)
def test_the_distortion_of_a_normal_is_the_stated_one(bits):
    book = codebook(bits)
    x = (X * book.gain).float()
    error = (book.decode(book.encode(x)) / book.gain).double() - X
    assert float((P * error.square()).sum()) == pytest.approx(DISTORTION[bits], rel=2e-3)


@pytest.mark.parametrize("bits", BITS)
def test_every_number_goes_to_the_nearest_level(bits):
    book = codebook(bits)
    x = torch.rand(2000, generator=torch.Generator().manual_seed(bits)) * 3 - 1.5
    distance = (book.decode(book.encode(x)) - x).abs()
    nearest = (book.levels[:, None] / 128 - x).abs().amin(0)
    assert torch.allclose(distance, nearest, atol=1e-7)
    assert len(book.levels) == 2**bits


def test_levels_are_integers_that_int8_holds():
    for bits in BITS:
        levels = codebook(bits).levels
        assert torch.equal(levels, levels.to(torch.int8).float())
