"""Widths for a kind of machine: offered ones only, and never more than the cache fraction."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conversion.allocation.per_layer import spread_over_layers, width_grid
from conversion.allocation.uniform import split_candidates
from conversion.errors import RecipeError
from conversion.recipes.methods import METHODS
from conversion.recipes.recipe import Recipe
from conversion.recipes.widths import cache_widths
from vllm_mha2mla.config import LatentWidths


def is_fast(widths):
    if (widths.kv_lora_rank, widths.qk_rope_head_dim) in ((256, 64), (512, 64)):
        return True
    return widths.width <= 256 and widths.width % 8 == 0 and widths.kv_lora_rank > 0


@given(
    fraction=st.floats(0.01, 0.999),
    method=st.sampled_from(list(METHODS)),
    kv_heads=st.integers(1, 16),
    head_dim=st.sampled_from([16, 64, 128]),
)
def test_the_same_widths_in_all_layers(fraction, method, kv_heads, head_dim):
    recipe = Recipe(method=method, cache_fraction=fraction, target="cuda", spread=False)
    whole = 2 * kv_heads * head_dim
    if fraction * whole < 8:
        with pytest.raises(RecipeError, match="give at least"):
            split_candidates(recipe, kv_heads, head_dim)
        return
    found = split_candidates(recipe, kv_heads, head_dim)
    assert all(map(is_fast, found))
    width = found[0].width
    assert {widths.width for widths in found} == {width}
    # The widest that is offered within the fraction.
    assert width <= fraction * whole + 1e-6
    assert fraction * whole < width + 8 or width in (256, 320, 576)


@pytest.mark.parametrize(
    ("kv_heads", "fraction", "widths"),
    [
        (8, 0.5, LatentWidths(512, 64)),
        (8, 0.25, LatentWidths(256, 64)),
        (8, 0.15, LatentWidths(170, 86)),
        (8, 0.125, LatentWidths(170, 86)),
        (1, 0.5, LatentWidths(86, 42)),
    ],
)
def test_widths_of_heads_of_128(kv_heads, fraction, widths):
    recipe = Recipe(cache_fraction=fraction, target="cuda", spread=False)
    assert split_candidates(recipe, kv_heads, 128)[0] == widths


def test_a_fraction_that_the_error_names_is_enough():
    with pytest.raises(RecipeError, match=r"leaves 0 numbers .* give at least 0\.0209"):
        cache_widths(Recipe(cache_fraction=0.01, target="cuda"), 3, 64)
    assert cache_widths(Recipe(cache_fraction=0.0209, target="cuda"), 3, 64).width == 8
    with pytest.raises(RecipeError, match=r"all 384 numbers .* at most 0\.8333"):
        cache_widths(Recipe(cache_fraction=1, target="cuda"), 3, 64)
    assert cache_widths(Recipe(cache_fraction=0.8333, target="cuda"), 3, 64).width == 256
    assert cache_widths(Recipe(cache_fraction=0.8334, target="cuda"), 3, 64).width == 320


def test_exact_widths_that_are_not_offered():
    recipe = Recipe(kv_lora_rank=448, rope_dim=64, target="cuda")
    with pytest.raises(RecipeError, match=r"rows of 512 numbers \(448 \+ 64\) are not fast there"):
        cache_widths(recipe, 8, 128)
    recipe = Recipe(kv_lora_rank=192, rope_dim=64, target="cuda")
    assert cache_widths(recipe, 8, 128) == LatentWidths(192, 64)


@settings(max_examples=30, deadline=None)
@given(
    kv_dim=st.sampled_from([64, 192, 512, 1024]),
    fraction=st.floats(0.05, 0.95),
    step=st.sampled_from([2, 6, 16]),
    scales=st.lists(st.tuples(st.floats(0.1, 10), st.floats(0.3, 2)), min_size=2, max_size=5),
)
def test_layers_of_their_own_widths(kv_dim, fraction, step, scales):
    width = int(2 * kv_dim * fraction)
    if width < 16:
        return
    costs = [
        {
            w: height * math.exp(-(w.kv_lora_rank + 2 * w.qk_rope_head_dim) / (scale * width))
            for w in width_grid(width, kv_dim, step)
        }
        for height, scale in scales
    ]
    for layer_widths in spread_over_layers(costs, width, step, "cuda").values():
        assert all(map(is_fast, layer_widths))
        assert all(widths.qk_rope_head_dim % step == 0 for widths in layer_widths)
        total = sum(widths.width for widths in layer_widths)
        assert total <= width * len(scales)
        # What is left is less than the next step of any layer, unless all are at their widest.
        left = width * len(scales) - total
        assert left < 8 or all(widths.width >= 248 for widths in layer_widths)
