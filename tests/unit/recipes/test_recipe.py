from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conversion.errors import RecipeError
from conversion.recipes.make import make_recipe
from conversion.recipes.recipe import Recipe
from conversion.recipes.widths import cache_widths, query_rank
from vllm_mha2mla.coding.codebooks import BITS
from vllm_mha2mla.config import LatentWidths


@given(
    fraction=st.floats(0.1, 1),
    method=st.sampled_from(["calibrated", "mha2mla"]),
    kv_heads=st.integers(1, 8),
    head_dim=st.sampled_from([16, 64, 128]),
)
def test_a_fraction_is_never_exceeded_and_used_to_the_last_number(
    fraction, method, kv_heads, head_dim
):
    widths = cache_widths(Recipe(method=method, cache_fraction=fraction), kv_heads, head_dim)
    budget = 2 * kv_heads * head_dim * fraction
    assert budget - 1 < widths.width <= budget + 1e-6
    assert widths.qk_rope_head_dim % 2 == 0


def test_the_whole_cache_is_every_key_rotated_and_every_value():
    assert cache_widths(Recipe(cache_fraction=1), 3, 64) == LatentWidths(192, 192)


@pytest.mark.parametrize(
    ("values", "bits"),
    [
        ({"bits": "auto"}, BITS),
        ({"bits": 8}, (8,)),
        ({"bits": "4", "method": "mha2mla"}, (4,)),
        ({"bits": 8, "kv_lora_rank": 64, "rope_dim": 32, "spread": False}, (8,)),
        ({"bits": 16}, None),
        ({"bits": "auto", "method": "care"}, None),
        ({"bits": "auto", "kv_lora_rank": 64, "rope_dim": 32}, None),
        ({"bits": "auto", "target": "cuda"}, None),
        ({"bits": "auto", "spread": False}, None),
        ({"bits": "auto", "split": "fixed"}, None),
        ({"bits": "auto", "cache_fraction": 1}, None),
    ],
)
def test_rows_are_coded_where_bits_say_so(values, bits):
    recipe = Recipe(**values)
    assert recipe.row_bits == bits
    assert not (recipe.spreads and recipe.row_bits)
    assert recipe.held_out == (2048 if bits is None else 8192)


def test_a_whole_cache_of_few_bits_loses_and_is_refitted():
    assert not Recipe(cache_fraction=1, bits=16).refits
    assert Recipe(cache_fraction=1, bits=4).refits


def test_the_less_is_lost_the_stronger_a_refit_is_pulled_to_what_was():
    few, some, many, most = (
        Recipe(bits="auto", cache_fraction=fraction).refit_ridge
        for fraction in (0.05, 0.16, 0.267, 0.9)
    )
    assert few == some == 400
    assert many == pytest.approx(4000)
    assert most == 1e6
    assert Recipe(bits=16, cache_fraction=0.5).refit_ridge == 400
    assert Recipe(bits="auto", cache_fraction=0.5, ridge=7).refit_ridge == 7


def test_options_win_over_the_file(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("cache_fraction: 0.5\nkey_weight: 0.7\n")
    recipe = make_recipe(path, kv_lora_rank=80, rope_dim=40, method=None)
    assert cache_widths(recipe, 3, 64) == LatentWidths(80, 40)
    assert recipe.key_weight == 0.7


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cache_fraction": 0.0}, "--cache-fraction.*greater than 0"),
        ({"cache_fraction": 1.5}, "--cache-fraction.*less than or equal to 1"),
        ({"cache_fraction": float("nan")}, "--cache-fraction"),
        ({"kv_lora_rank": 8}, "go together"),
        ({"kv_lora_rank": 8, "rope_dim": 3}, "odd"),
        ({"kv_lora_rank": 8, "rope_dim": 2, "cache_fraction": 0.5}, "not both"),
        ({"spread": True, "kv_lora_rank": 8, "rope_dim": 2}, "chooses every layer's widths"),
        ({"spread": True, "split": "fixed"}, "chooses every layer's widths"),
        ({"bits": "5"}, "--bits"),
        ({"bits": "8", "target": "cuda"}, "coded rows need no such widths"),
        ({"bits": "4", "spread": False}, "widths of their own in every layer"),
        ({"bits": "4", "split": "fixed"}, "widths of their own in every layer"),
        ({"method": "magic"}, "--method"),
        ({"q_lora_rank": 0}, "--q-lora-rank.*greater than or equal to 1"),
        ({"calibration_tokens": 0}, "--calibration-tokens"),
    ],
)
def test_impossible_options_are_named(options, message):
    with pytest.raises(RecipeError, match=message):
        make_recipe(None, **options)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("cache_fractoin: 0.5", "cache_fractoin"),
        ("ridge: -1", ": ridge: .*got -1"),
        ("- 1", "not a YAML mapping"),
        ("a: [", "YAML"),
    ],
)
def test_a_bad_file_is_named(tmp_path, content, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(content)
    with pytest.raises(RecipeError, match=f"recipe.yaml.*{message}"):
        make_recipe(path)


def test_options_that_fix_widths_win_over_a_file_that_spreads(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("cache_fraction: 0.5\nbits: 16\nspread: true\n")
    assert cache_widths(make_recipe(path, kv_lora_rank=80, rope_dim=40), 3, 64) == LatentWidths(
        80, 40
    )
    assert not make_recipe(path, split="fixed").spreads
    assert make_recipe(path).spreads


def test_an_option_for_coded_rows_wins_over_a_file_of_plain_ones(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("cache_fraction: 0.5\nspread: false\ntarget: cuda\nsplit: fixed\n")
    assert make_recipe(path).row_bits is None
    assert make_recipe(path, bits="8").row_bits == (8,)
    assert make_recipe(path, bits="auto").row_bits == BITS
    assert make_recipe(path, bits="16").target == "cuda"
    assert make_recipe(Path("mla576"), bits="4").row_bits == (4,)


def test_an_options_mistake_is_not_the_files():
    with pytest.raises(RecipeError) as caught:
        make_recipe(Path("half"), cache_fraction=7)
    assert str(caught.value).startswith("--cache-fraction: ")


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (Recipe(kv_lora_rank=8, rope_dim=400), "at most 192"),
        (Recipe(kv_lora_rank=500, rope_dim=8), "at most 384"),
        (Recipe(cache_fraction=0.001), "leaves 0 numbers"),
    ],
)
def test_widths_that_do_not_fit_the_source(recipe, message):
    with pytest.raises(RecipeError, match=message):
        cache_widths(recipe, 3, 64)


def test_a_query_latent_is_at_most_as_wide_as_the_input():
    assert query_rank(Recipe(), 64) is None
    assert query_rank(Recipe(q_lora_rank=64), 64) == 64
    with pytest.raises(RecipeError, match="at most 64"):
        query_rank(Recipe(q_lora_rank=65), 64)


def test_nothing_is_refitted_where_nothing_is_lost():
    assert Recipe(cache_fraction=0.5).refits
    assert not Recipe(cache_fraction=1).refits
    assert Recipe(cache_fraction=1, refit=True).refits
    assert not Recipe(cache_fraction=0.5, method="mha2mla").refits
