"""The widths to choose from, and the measure they are chosen by."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conversion.allocation.uniform import split_candidates
from conversion.errors import RecipeError
from conversion.layers.divergence import mean_divergences
from conversion.recipes.methods import METHODS
from conversion.recipes.recipe import Recipe
from conversion.recipes.widths import cache_widths
from conversion.rotary import ROTARY
from vllm_mha2mla.config import LatentWidths


@given(
    fraction=st.floats(0.05, 0.999),
    method=st.sampled_from(list(METHODS)),
    rotary=st.sampled_from([None, *ROTARY]),
    kv_heads=st.integers(1, 8),
    head_dim=st.sampled_from([16, 64, 128]),
)
def test_candidates_have_the_budgets_width_and_widths_the_strategy_takes(
    fraction, method, rotary, kv_heads, head_dim
):
    recipe = Recipe(method=method, rotary=rotary, cache_fraction=fraction)
    budget = int(2 * kv_heads * head_dim * fraction + 1e-9)
    try:
        own = cache_widths(recipe, kv_heads, head_dim)
    except RecipeError:
        with pytest.raises(RecipeError):
            split_candidates(recipe, kv_heads, head_dim)
        return
    found = split_candidates(recipe, kv_heads, head_dim)
    assert found[0] == own
    favoured = recipe.strategies()[0].favoured(kv_heads, head_dim)
    fitting = {rope for rope in favoured if rope < budget and rope <= kv_heads * head_dim}
    assert 1 <= len(found) == len(set(found)) <= 5 + len(fitting)
    assert {widths.qk_rope_head_dim for widths in found} >= fitting
    for widths in found:
        assert widths.width == budget
        assert widths.kv_lora_rank >= 1
        # What a recipe with exact widths would accept.
        exact = Recipe(
            method=method,
            rotary=rotary,
            kv_lora_rank=widths.kv_lora_rank,
            rope_dim=widths.qk_rope_head_dim,
        )
        assert cache_widths(exact, kv_heads, head_dim) == widths


def test_candidates_for_smollm2_at_half_the_cache():
    found = split_candidates(Recipe(cache_fraction=0.5), 3, 64)
    ropes = [widths.qk_rope_head_dim for widths in found]
    # A third is the method's own; 3/8 of 192, 72, stands back for it.
    assert ropes == [64, 12, 24, 48, 96]
    published = split_candidates(Recipe(cache_fraction=0.5, method="mha2mla"), 3, 64)
    assert [widths.qk_rope_head_dim for widths in published] == [36, 12, 24, 72, 96]
    # The budget's shares are 8, 16, 32, 56 and 72. RoRoPE folds eight wide at 56, one wide at 64.
    folding = split_candidates(Recipe(cache_fraction=0.375, method="transmla"), 3, 64)
    assert [widths.qk_rope_head_dim for widths in folding] == [16, 8, 32, 48, 56, 64, 72]


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(cache_fraction=1),
        Recipe(cache_fraction=0.5, split="fixed"),
        Recipe(kv_lora_rank=128, rope_dim=64),
    ],
)
def test_nothing_to_choose(recipe):
    assert split_candidates(recipe, 3, 64) == [cache_widths(recipe, 3, 64)]


def test_a_budget_too_small_for_rotary_numbers_is_one_candidate():
    recipe = Recipe(cache_fraction=0.02, method="transmla")
    assert split_candidates(recipe, 3, 64) == [LatentWidths(7, 0)]


def test_divergences_by_pieces_of_the_vocabulary_are_those_of_the_whole():
    generator = torch.Generator().manual_seed(0)
    head = torch.randn(301, 16, generator=generator) * 2
    original = torch.randn(1100, 16, generator=generator)
    converted = [original + scale * torch.randn(1100, 16, generator=generator)
                 for scale in (0.0, 0.1, 1.0)]  # fmt: skip
    # Small logits first: the largest so far has to change on the way.
    head = head[head.norm(dim=1).argsort()]
    found = mean_divergences(original, converted, head.split(64))
    p = (original.double() @ head.double().T).log_softmax(-1)
    for value, states in zip(found, converted, strict=True):
        q = (states.double() @ head.double().T).log_softmax(-1)
        expected = torch.nn.functional.kl_div(q, p, log_target=True, reduction="batchmean")
        # float32 logits of up to about 30, and as large a sum.
        assert value == pytest.approx(float(expected), rel=1e-4, abs=1e-5)
