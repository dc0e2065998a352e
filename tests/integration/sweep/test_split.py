"""The split that a budget gets: against every candidate, converted and measured by itself."""

import pytest
from transformers import LlamaForCausalLM

from conversion.allocation.uniform import split_candidates
from conversion.recipes.recipe import REFIT_SHARE, Recipe
from conversion.recipes.widths import cache_widths
from conversion.text.windows import calibration_windows
from tests.support.divergence import divergence
from tests.support.sweep import LAYERS, WINDOW, single
from tests.support.tiny import TEXT, save_tiny, tiny_tokenizer


@pytest.mark.parametrize(
    ("changes", "recipe"),
    [
        ({}, {"method": "mha2mla"}),
        ({}, {"method": "transmla", "refit": True}),
        ({}, {"method": "care", "q_lora_rank": 40}),
        ({"tie_word_embeddings": False}, {"spread": False}),
    ],
)
def test_the_split_is_the_best_candidate_on_text_held_out(tmp_path, changes, recipe):
    folder, files = tmp_path, [tmp_path / "calibration.txt"]
    save_tiny(folder / "source", num_hidden_layers=LAYERS, **changes)
    files[0].write_text(TEXT)
    chosen = single(folder, folder / "auto", cache_fraction=0.5, **recipe).config
    held_out = calibration_windows(tiny_tokenizer(), files, REFIT_SHARE * 512, WINDOW, 128).held_out
    assert held_out.shape == (2, WINDOW)
    original = LlamaForCausalLM.from_pretrained(folder / "source").eval()
    losses = {}
    budget = Recipe(cache_fraction=0.5, **recipe)
    for widths in split_candidates(budget, 2, 16):
        exact = {"kv_lora_rank": widths.kv_lora_rank, "rope_dim": widths.qk_rope_head_dim}
        name = f"{widths.kv_lora_rank}+{widths.qk_rope_head_dim}"
        model = single(folder, folder / name, **exact, **recipe | {"refit": False})
        losses[name] = divergence(original, model, held_out)
    assert len(losses) > 2
    best = min(losses, key=losses.__getitem__)
    assert f"{chosen.kv_lora_rank}+{chosen.qk_rope_head_dim}" == best
    figures = chosen.mha2mla["figures"]
    candidates = {f"held_out_divergence_{name}" for name in losses}
    assert figures.keys() == candidates | {"held_out_divergence"}
    for name, loss in losses.items():
        # Another order of float32 sums.
        assert figures[f"held_out_divergence_{name}"] == pytest.approx(loss, rel=1e-3)
    # The published methods' own shares would have been others.
    fixed = cache_widths(budget, 2, 16)
    own = f"{fixed.kv_lora_rank}+{fixed.qk_rope_head_dim}"
    assert best != own or budget.method == "calibrated"


def test_a_fixed_split_is_the_methods(folder, tmp_path):
    config = single(folder, tmp_path / "out", cache_fraction=0.4, split="fixed").config
    widths = cache_widths(Recipe(cache_fraction=0.4), 2, 16)
    assert (config.kv_lora_rank, config.qk_rope_head_dim) == (
        widths.kv_lora_rank, widths.qk_rope_head_dim,
    )  # fmt: skip
    assert config.mha2mla["figures"].keys() == {"held_out_divergence"}


def test_a_text_too_short_to_hold_out_is_chosen_on_and_said(folder, tmp_path, caplog):
    short = tmp_path / "short.txt"
    short.write_text(TEXT[:200])
    with caplog.at_level("INFO"):
        model = single(folder, tmp_path / "out", method="care", calibration=[str(short)])
    assert model.config.mha2mla["calibration"]["tokens"] == 3 * WINDOW
    assert "too short to hold any of it out" in caplog.text
    assert len(model.config.mha2mla["figures"]) > 2
