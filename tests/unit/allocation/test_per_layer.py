"""Spreading a cache budget over layers."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conversion.allocation.per_layer import allocate
from conversion.errors import RecipeError
from vllm_mha2mla.config import LatentWidths

RANKS, ROPES = (8, 24, 40), (0, 8, 16)


def exponential(height: float, rank_scale: float, rope_scale: float) -> dict[LatentWidths, float]:
    """A cost that falls exponentially with both widths."""
    return {
        LatentWidths(r, p): height * math.exp(-r / rank_scale - p / rope_scale)
        for r in RANKS
        for p in ROPES
    }


def total(layer_widths: list[LatentWidths]) -> int:
    return sum(widths.width for widths in layer_widths)


def test_a_layer_that_loses_more_gets_more() -> None:
    layer_widths = allocate([exponential(1, 20, 20), exponential(10, 20, 20)], 80)
    assert layer_widths[1].width > layer_widths[0].width
    assert total(layer_widths) == 80


def test_a_large_loss_is_dearer_than_several_small_ones() -> None:
    # One layer gains as much from 16 numbers, at a high loss, as another at a low one: as a sum of
    # costs it would not matter which gets them.
    high = {LatentWidths(r, 0): c for r, c in ((8, 1.1), (24, 1.0))}
    low = {LatentWidths(r, 0): c for r, c in ((8, 0.2), (24, 0.1))}
    assert allocate([low, high], 32, power=1.5) == [LatentWidths(8, 0), LatentWidths(24, 0)]


def test_rotary_goes_where_rotation_matters() -> None:
    layer_widths = allocate([exponential(1, 20, 5), exponential(1, 5, 1000)], 70)
    assert layer_widths[0].qk_rope_head_dim > layer_widths[1].qk_rope_head_dim == 0


@pytest.mark.parametrize("power", [1, 1.5])
def test_as_good_as_trying_everything(power: float) -> None:
    # Powers of costs are exponentials, which the interpolation reproduces exactly, so brute force
    # over the same steps is an independent optimum. The multiplier finds the best convex
    # combination: it may miss what only a jump between two of its points reaches, by less than 2 %
    # here.
    parameters = [(1.0, 15.0, 9.0), (4.0, 25.0, 12.0), (0.5, 10.0, 30.0)]
    budget = 96

    def cost(layer: tuple[float, float, float], rank: int, rope: int) -> float:
        return layer[0] * math.exp(-rank / layer[1] - rope / layer[2])

    choices = list(itertools.product(range(8, 41, 4), range(0, 17, 2)))
    best = math.inf
    for a, b in itertools.product(choices, choices):
        left = budget - sum(a) - sum(b)
        for c in choices:
            if sum(c) <= left:
                widths = zip(parameters, (a, b, c), strict=True)
                value = sum(cost(p, *w) ** power for p, w in widths)
                best = min(best, value)
    found = allocate([exponential(*p) for p in parameters], budget, power=power)
    value = sum(
        cost(p, w.kv_lora_rank, w.qk_rope_head_dim) ** power
        for p, w in zip(parameters, found, strict=True)
    )
    assert total(found) <= budget
    assert value <= best * 1.02


@settings(max_examples=40)
@given(
    heights=st.lists(st.floats(1e-6, 10), min_size=1, max_size=6),
    mean=st.integers(8, 56),
    power=st.sampled_from([1, 2]),
)
def test_never_above_the_budget_and_all_of_it_used(
    heights: list[float], mean: int, power: float
) -> None:
    layers = [exponential(h, 15, 10) for h in heights]
    layer_widths = allocate(layers, mean * len(heights), power=power)
    assert total(layer_widths) == mean * len(heights)
    for widths in layer_widths:
        assert RANKS[0] <= widths.kv_lora_rank <= RANKS[-1]
        assert ROPES[0] <= widths.qk_rope_head_dim <= ROPES[-1]
        assert widths.qk_rope_head_dim % 2 == 0


def test_measurement_noise_does_not_buy_width() -> None:
    # One measured value is a little above its narrower neighbour's: not a reason to want less.
    noisy = {LatentWidths(r, 0): c for r, c in ((8, 1.0), (24, 0.1), (40, 0.101))}
    falling = {LatentWidths(r, 0): c for r, c in ((8, 1.0), (24, 0.1), (40, 0.09))}
    layer_widths = allocate([noisy, falling], 64)
    assert layer_widths == [LatentWidths(24, 0), LatentWidths(40, 0)]


def test_rotary_widths_are_what_the_strategy_takes() -> None:
    layers = [exponential(h, 15, 6) for h in (1, 2, 3, 5)]
    for budget in range(60, 160, 7):
        for widths in allocate(layers, budget, rope_step=8):
            assert widths.qk_rope_head_dim in ROPES


def test_a_budget_below_the_least_is_refused() -> None:
    with pytest.raises(RecipeError, match="cache_fraction"):
        allocate([exponential(1, 10, 10)] * 2, 15)


def test_small_losses_are_weighed_as_large_ones_are() -> None:
    layers = [exponential(h, 15, 6) for h in (1, 2, 3, 5)]
    small = [{widths: cost * 1e-5 for widths, cost in layer.items()} for layer in layers]
    assert allocate(small, 160, power=2) == allocate(layers, 160, power=2)


@pytest.mark.parametrize("overflowed", [math.nan, math.inf])
def test_widths_at_which_a_layer_overflows_are_not_chosen(overflowed: float) -> None:
    costs = exponential(1, 20, 20)
    narrow = costs | {LatentWidths(8, p): overflowed for p in ROPES}
    layer_widths = allocate([costs, narrow], 60)
    assert layer_widths[1].kv_lora_rank >= 24
    assert total(layer_widths) == 60
