"""A spread budget, chosen among several by what the whole model loses on held-out text."""

import pytest
from transformers import LlamaForCausalLM

from conversion.allocation import per_layer as spread
from conversion.recipes.recipe import REFIT_SHARE
from conversion.text.windows import calibration_windows
from tests.support.divergence import divergence
from tests.support.sweep import CALIBRATION, WINDOW, single
from tests.support.tiny import TEXT, save_tiny, tiny_tokenizer
from vllm_mha2mla.config import latent_widths


def test_the_widths_are_the_best_candidate_on_text_held_out(tmp_path, monkeypatch):
    save_tiny(tmp_path / "source", num_hidden_layers=6)
    text = tmp_path / "calibration.txt"
    text.write_text(TEXT)
    tokens = CALIBRATION["calibration_tokens"]
    held_out = calibration_windows(
        tiny_tokenizer(), [text], REFIT_SHARE * tokens, WINDOW, CALIBRATION["held_out_tokens"]
    ).held_out
    original = LlamaForCausalLM.from_pretrained(tmp_path / "source").eval()
    losses, layer_widths = {}, {}
    for power in (1.0, 4.0):
        monkeypatch.setattr(spread, "POWERS", (power,))
        model = single(tmp_path, tmp_path / f"{power}", cache_fraction=0.15, bits=16, refit=False)
        layer_widths[power] = latent_widths(model.config)
        losses[power] = divergence(original, model, held_out)
    assert layer_widths[1.0] != layer_widths[4.0]
    monkeypatch.setattr(spread, "POWERS", tuple(losses))
    chosen = single(tmp_path, tmp_path / "chosen", cache_fraction=0.15, bits=16, refit=False)
    assert latent_widths(chosen.config) == layer_widths[min(losses, key=losses.__getitem__)]
    figures = chosen.config.mha2mla["figures"]
    # Both models' products are rounded to bfloat16 where the processor has it.
    loss = figures.pop("held_out_divergence")
    assert loss == pytest.approx(divergence(original, chosen, held_out), rel=0.1)
    # Another order of float32 sums.
    assert figures == {
        f"held_out_divergence_power_{power:g}": pytest.approx(loss, rel=1e-3)
        for power, loss in losses.items()
    }
