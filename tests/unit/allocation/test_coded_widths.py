"""The widths that coded rows may have: whole units, within the source, for a number of bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conversion.allocation.coded_widths import byte_budget, width_grid
from conversion.errors import RecipeError
from conversion.recipes.recipe import Recipe

SHAPES = [(3, 64, 576), (2, 16, 64), (8, 128, 4096), (32, 128, 4096), (1, 16, 64), (1, 8, 32)]


@given(fraction=st.floats(0.2, 0.9), shape=st.sampled_from(SHAPES))
def test_all_widths_fill_units_and_fit_the_source(fraction, shape):
    kv_heads, head_dim, hidden = shape
    grid = width_grid(Recipe(cache_fraction=fraction, bits="auto"), *shape)
    assert grid.ropes
    for rope in grid.ropes:
        assert rope % 16 == 0
        assert rope <= kv_heads * head_dim
        ranks = grid.ranks(rope)
        assert ranks == sorted(set(ranks))
        assert set(grid.measured_ranks(rope)) >= {ranks[0], ranks[-1]}
        assert all(rank % 8 == 0 and 0 < rank <= hidden for rank in ranks)
        assert ranks[-1] + rope <= 2 * kv_heads * head_dim


def test_rotary_columns_suit_the_strategy():
    """RoRoPE keeps whole frequencies of all heads: three pairs here, so lcm(16, 6) columns."""
    recipe = Recipe(method="transmla", cache_fraction=0.5, bits="8")
    step = recipe.strategies()[0].step(3, 64)
    assert all(rope % step == rope % 16 == 0 for rope in width_grid(recipe, 3, 64, 576).ropes)


def test_bytes_are_those_of_a_16_bit_cache():
    assert byte_budget(Recipe(cache_fraction=0.25), 3, 64, 30) == 30 * 192
    # 0.29 of 100 in floating point is 28.999999999999996.
    assert byte_budget(Recipe(cache_fraction=0.29), 1, 25, 1) == 29


def test_too_few_bytes_are_refused_with_the_least():
    with pytest.raises(RecipeError, match=r"0.003: below the 7 bytes.*at least 0.0092"):
        width_grid(Recipe(cache_fraction=0.003, bits="auto"), 3, 64, 576)
    width_grid(Recipe(cache_fraction=0.0092, bits="auto"), 3, 64, 576)


@pytest.mark.parametrize(("rank", "rope"), [(84, 48), (80, 40)])
def test_exact_widths_of_no_units_are_refused(rank, rope):
    recipe = Recipe(kv_lora_rank=rank, rope_dim=rope, bits="4")
    with pytest.raises(RecipeError, match="multiples of 8 and a rope_dim in multiples of 16"):
        width_grid(recipe, 3, 64, 576)
    exact = width_grid(Recipe(kv_lora_rank=80, rope_dim=48, bits="4"), 3, 64, 576)
    assert [(rank, rope) for rope in exact.ropes for rank in exact.ranks(rope)] == [(80, 48)]
