"""Decisions and training over all layers together: widths per layer, and refinement."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from conversion.errors import TrainingError
from conversion.recipes.recipe import Recipe
from tests.support.convert import convert_tiny, windows
from tests.support.divergence import divergence
from tests.support.tiny import save_tiny
from vllm_mha2mla.config import latent_widths


@pytest.mark.parametrize("rotary", ["calibrated", "2-norm"])
def test_a_spread_budget_is_used_to_the_last_number(tmp_path, rotary):
    source = save_tiny(tmp_path / "source", num_hidden_layers=4)
    # 64 numbers per token and layer; a fraction that does not divide them.
    model = convert_tiny(source, tmp_path / "out", cache_fraction=0.41, bits=16, rotary=rotary)
    layer_widths = latent_widths(model.config)
    assert sum(widths.width for widths in layer_widths) == 4 * int(64 * 0.41)
    assert len(set(layer_widths)) > 1
    step = Recipe(rotary=rotary).strategies()[0].step(2, 16)
    assert all(widths.qk_rope_head_dim % step == 0 for widths in layer_widths)


def test_the_layer_that_matters_gets_the_cache(tmp_path):
    # A layer whose output projection is nearly zero loses nothing whatever it caches.
    source = save_tiny(tmp_path / "source", num_hidden_layers=2)
    original = LlamaForCausalLM.from_pretrained(source)
    with torch.no_grad():
        original.model.layers[1].self_attn.o_proj.weight.mul_(1e-3)
    original.save_pretrained(source)
    spread = convert_tiny(source, tmp_path / "spread", cache_fraction=0.4, bits=16, refit=False)
    first, second = latent_widths(spread.config)
    assert first.width > 2 * second.width
    uniform = convert_tiny(
        source, tmp_path / "uniform", cache_fraction=0.4, refit=False, spread=False
    )
    assert latent_widths(uniform.config)[0] == latent_widths(uniform.config)[1]
    assert divergence(original, spread, windows()) < divergence(original, uniform, windows())


def test_refinement_follows_the_original_and_trains_attention_only(tmp_path):
    source = save_tiny(tmp_path / "source")
    original = LlamaForCausalLM.from_pretrained(source).eval()
    # The published factors leave most to repair.
    recipe = {"cache_fraction": 0.3, "split": "fixed", "method": "mha2mla"}
    plain = convert_tiny(source, tmp_path / "plain", **recipe)
    refinement = {"refine_steps": 40, "refine_lr": 2e-3, "refine_window": 64}
    refined = convert_tiny(source, tmp_path / "refined", **recipe, **refinement)
    assert divergence(original, refined, windows()) < 0.8 * divergence(original, plain, windows())

    before, after = (
        load_file(tmp_path / name / "model.safetensors") for name in ("plain", "refined")
    )
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert all(".self_attn." in name for name in changed)
    assert not any(name.endswith("rope_inv_freq") for name in changed)
    for part in ("q_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"):
        assert f"model.layers.0.self_attn.{part}.weight" in changed


def test_a_refinement_that_runs_away_says_so(tmp_path):
    source = save_tiny(tmp_path / "source")
    refinement = {"refine_steps": 40, "refine_lr": 1e30, "refine_window": 64}
    with pytest.raises(TrainingError, match="NaN or infinite; choose a lower refine_lr"):
        convert_tiny(source, tmp_path / "refined", cache_fraction=0.3, **refinement)
    assert not (tmp_path / "refined").exists()
