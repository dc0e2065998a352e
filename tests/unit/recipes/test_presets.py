from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conversion.errors import RecipeError
from conversion.latent import LATENT
from conversion.recipes.make import make_recipe
from conversion.recipes.methods import METHODS
from conversion.recipes.presets import FOLDER, presets
from conversion.recipes.recipe import Recipe
from conversion.recipes.widths import cache_widths
from conversion.rotary import ROTARY
from vllm_mha2mla.config import LatentWidths

# Cache numbers per token and layer for 8 KV heads of 128, as Llama 3 8B has: 2048 in the original.
WIDTHS = {"quick": 1024, "half": 1024, "third": 682, "quarter": 512, "eighth": 256}
WIDTHS |= {"mla576": 576, "mla320": 320}


@pytest.mark.parametrize("name", presets())
def test_every_preset_is_a_recipe(name):
    recipe = make_recipe(Path(name))
    assert cache_widths(recipe, 8, 128).width == WIDTHS[name]
    assert recipe.method == "calibrated"
    assert (FOLDER / f"{name}.yaml").read_text().startswith("# ")


def test_all_presets_are_found_and_in_order():
    assert presets()[:5] == ["quick", "half", "third", "quarter", "eighth"]
    assert set(presets()) == set(WIDTHS)


def test_gpu_presets_have_the_widths_of_the_kernels():
    assert cache_widths(make_recipe(Path("mla576")), 8, 128) == LatentWidths(512, 64)
    assert cache_widths(make_recipe(Path("mla320")), 8, 128) == LatentWidths(256, 64)


def test_a_file_wins_over_a_preset_of_its_name_and_a_folder_does_not(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("half").write_text("cache_fraction: 0.7\n")
    Path("quarter").mkdir()
    assert make_recipe(Path("half")).cache_fraction == 0.7
    assert make_recipe(Path("quarter")).cache_fraction == 0.25


def test_options_win_over_a_preset():
    recipe = make_recipe(Path("mla576"), cache_fraction=0.25, method="transmla")
    assert recipe.cache_fraction == 0.25
    assert recipe.kv_lora_rank is None


def test_an_unknown_name_lists_the_presets():
    with pytest.raises(RecipeError, match=r"--recipe haf: .*quick, half, .*eighth, mla320"):
        make_recipe(Path("haf"))


def test_a_missing_file_is_not_taken_for_a_preset():
    with pytest.raises(RecipeError, match=r"half\.yaml: cannot be read"):
        make_recipe(Path("half.yaml"))


@pytest.mark.parametrize("method", METHODS)
def test_a_method_names_strategies_that_exist(method):
    rotary, latent = Recipe(method=method).strategies()
    assert rotary is ROTARY[METHODS[method].rotary]
    assert latent is LATENT[METHODS[method].latent]


@pytest.mark.parametrize("rotary", ROTARY)
@pytest.mark.parametrize("latent", LATENT)
def test_any_strategy_goes_with_any(rotary, latent):
    recipe = make_recipe(None, method="transmla", rotary=rotary, latent=latent)
    assert recipe.strategies() == (ROTARY[rotary], LATENT[latent])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rotary": "fast"}, "--rotary: choose one of calibrated, 2-norm, .*rorope .got 'fast'"),
        ({"latent": "pca"}, "--latent: choose one of .*whitened .got 'pca'"),
        ({"method": "mla"}, "--method: choose one of calibrated, mha2mla, transmla, care"),
    ],
)
def test_an_unknown_strategy_lists_the_known(options, message):
    with pytest.raises(RecipeError, match=message):
        make_recipe(None, **options)


@given(
    fraction=st.floats(0.1, 1),
    method=st.sampled_from(list(METHODS)),
    rotary=st.sampled_from([None, *ROTARY]),
    kv_heads=st.integers(1, 8),
    head_dim=st.sampled_from([16, 64, 80, 128]),
)
def test_a_split_is_one_the_strategy_takes(fraction, method, rotary, kv_heads, head_dim):
    recipe = Recipe(method=method, rotary=rotary, cache_fraction=fraction)
    widths = cache_widths(recipe, kv_heads, head_dim)
    name = rotary or METHODS[method].rotary
    every = {"calibrated": 2, "mean-rotation": 2, "rorope": head_dim // 8}
    step = every.get(name, 2 * kv_heads)
    assert widths.qk_rope_head_dim % step == 0
    budget = 2 * kv_heads * head_dim * fraction
    assert budget - 1 < widths.width <= budget + 1e-6


@pytest.mark.parametrize(("rotary", "step"), [("2-norm", 6), ("rorope", 8)])
def test_a_rope_dim_the_strategy_cannot_take_is_refused_early(rotary, step):
    recipe = Recipe(kv_lora_rank=80, rope_dim=28, rotary=rotary)
    with pytest.raises(RecipeError, match=f"rope_dim 28: .* multiples of {step}"):
        cache_widths(recipe, 3, 64)
