"""Bits and widths by bytes: never over them, nearly all of them, and no better choice."""

import itertools

import pytest
import torch

from conversion.coding.plan import POWER, plan
from conversion.coding.units import Candidate, layer_choices
from vllm_mha2mla.coding.codebooks import BITS, DISTORTION
from vllm_mha2mla.config import LatentWidths


def random_candidates(seed, widths=((16, 16), (32, 16), (48, 32))):
    """Spectra that fall over three orders of magnitude; a wider row truncates less."""
    torch.manual_seed(seed)
    most = max(rank for rank, _ in widths)
    latent = torch.logspace(-2, -5, most, dtype=torch.float64) * (1 + torch.rand(1))
    pairs = torch.logspace(-2.5, -4, 64, dtype=torch.float64) * (1 + torch.rand(1))
    return [
        Candidate(
            LatentWidths(rank, rope),
            0.3 * 2 ** (-(rank + 2 * rope) / 8),
            latent[:rank],
            pairs[: rope // 2],
        )
        for rank, rope in widths
    ]


def cost(candidate, code):
    """Nats of a choice, number by number."""
    lam = torch.cat((candidate.latent, candidate.pairs, candidate.pairs)).tolist()
    return candidate.truncation + sum(
        one * DISTORTION[bits] / 2 for one, bits in zip(lam, code.column_bits, strict=True)
    )


@pytest.mark.parametrize("budget", [40, 61, 100, 137, 200, 333])
@pytest.mark.parametrize("bits", [BITS, (4,), (8,)])
def test_never_over_the_bytes_and_nearly_all_of_them(budget, bits):
    layers = [layer_choices(random_candidates(seed), bits) for seed in range(3)]
    found = plan(layers, budget)
    least, most = (
        sum(getattr(one, which) for one in layers) for which in ("least_bytes", "most_bytes")
    )
    used = sum(one.code.row_bytes for one in found)
    assert used <= max(budget, least)
    # Of mixed bits, the largest step left is two more bits of eight pairs; of uniform ones, a row.
    step = 4 if len(bits) > 1 else 12 * bits[0]
    assert used > min(budget, most) - step


def test_wider_columns_come_first_and_both_halves_of_pairs_are_alike():
    for one in plan([layer_choices(random_candidates(seed), BITS) for seed in range(3)], 150):
        first, second = one.code.rotary_units
        assert first == second
        for units in (one.code.latent_units, first):
            assert list(units) == sorted(units, reverse=True)


def test_predicted_costs_are_sums_over_columns():
    candidates = random_candidates(0)
    (found,) = plan([layer_choices(candidates, BITS)], 60)
    (chosen,) = [one for one in candidates if one.widths == found.code.widths]
    assert found.cost == pytest.approx(cost(chosen, found.code), rel=1e-9)


def test_no_choice_of_the_same_bytes_is_much_better():
    """Against all choices of two layers of two units each."""
    layers = [layer_choices(random_candidates(seed, [(16, 0)]), BITS) for seed in range(2)]

    def cost_of(layer, places):
        units = sum(float(layer.costs[0, unit, place]) for unit, place in enumerate(places))
        return float(layer.truncation[0]) + units

    for budget in range(8, 30):
        reached = sum(one.cost**POWER for one in plan(layers, budget))
        best = min(
            cost_of(layers[0], places[:2]) ** POWER + cost_of(layers[1], places[2:]) ** POWER
            for places in itertools.product(range(len(BITS)), repeat=4)
            if sum(BITS[place] for place in places) + 4 <= budget
        )
        # A price finds the corners of the lower hull of all choices; between them the rest is
        # spent greedily.
        assert reached <= best * 1.35
