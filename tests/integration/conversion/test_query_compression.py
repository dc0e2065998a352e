"""Conversions with ``q_lora_rank``: in the command, on disk, in transformers."""

import json
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from conversion import cli
from tests.support.convert import convert_tiny, windows
from tests.support.divergence import divergence
from tests.support.tiny import TEXT, VARIANTS, save_tiny


def logits(model):
    with torch.no_grad():
        return model(windows()).logits


@pytest.mark.parametrize("changes", [{}, {"attention_bias": True}, {"head_dim": 32}])
@pytest.mark.parametrize(
    "recipe",
    [{"spread": False, "refit": False}, {"method": "mha2mla"}, {"spread": False, "refit": True}],
)
def test_full_rank_is_the_model_without(tmp_path, changes, recipe):
    source = save_tiny(tmp_path / "source", **changes)
    plain = convert_tiny(source, tmp_path / "plain", cache_fraction=0.5, **recipe)
    full = convert_tiny(source, tmp_path / "full", cache_fraction=0.5, q_lora_rank=64, **recipe)
    assert full.config.q_lora_rank == 64
    # Factors are multiplied in another order: float32 rounding, up to 1e-5 seen at logits of 6. A
    # refit sees their products in bfloat16, which rounds to 2^-9 of a number, here up to 0.03.
    tolerance = 0.1 if recipe.get("refit") else 1e-4
    assert float(logits(plain).abs().max()) > 4
    torch.testing.assert_close(logits(full), logits(plain), atol=tolerance, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_beats_truncating_the_query_matrix(tmp_path, variant):
    source = save_tiny(tmp_path / "source", variant)
    plain = convert_tiny(source, tmp_path / "plain", cache_fraction=1)
    ours = convert_tiny(source, tmp_path / "ours", cache_fraction=1, q_lora_rank=32)
    truncated = LlamaForCausalLM.from_pretrained(source).eval()
    for layer in truncated.model.layers:
        U, S, Vh = torch.linalg.svd(layer.self_attn.q_proj.weight.detach())
        layer.self_attn.q_proj.weight.data = (U[:, :32] * S[:32]) @ Vh[:32]
    assert 0 < divergence(plain, ours, windows()) < divergence(plain, truncated, windows())


def test_a_refit_repairs_what_it_costs(tmp_path):
    source = save_tiny(tmp_path / "source")
    original = LlamaForCausalLM.from_pretrained(source).eval()
    distance = {}
    for refit in (False, True):
        model = convert_tiny(
            source, tmp_path / f"{refit}", cache_fraction=1, q_lora_rank=24, refit=refit
        )
        with torch.no_grad():
            ours, theirs = (m.model(windows()).last_hidden_state for m in (model, original))
        distance[refit] = float((ours - theirs).square().mean())
    assert distance[True] < distance[False]


@pytest.mark.parametrize("bias", [False, True])
def test_the_command_writes_it_and_says_so(tmp_path, monkeypatch, capsys, bias):
    source = save_tiny(tmp_path / "source", shard_size="60KB", attention_bias=bias)
    (tmp_path / "text.txt").write_text(TEXT)
    out = tmp_path / "out"

    def mha2mla(*arguments):
        monkeypatch.setattr(sys, "argv", ["mha2mla", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        assert stop.value.code == 0
        return capsys.readouterr().out

    options = ("--calibration", tmp_path / "text.txt", "--calibration-tokens", "512")
    printed = mha2mla("convert", source, out, *options, "--q-lora-rank", "24")
    assert "q_lora_rank" in printed
    assert json.loads(mha2mla("inspect", out, "--json"))["q_lora_rank"] == 24
    card = (out / "README.md").read_text()
    assert "Queries are factorised through 24 numbers." in card
    assert "q_lora_rank: 24" in card
    assert json.loads((out / "config.json").read_text())["q_lora_rank"] == 24

    tensors = {}
    for shard in out.glob("*.safetensors"):
        tensors |= load_file(shard)
    prefix = "model.layers.1.self_attn."
    widths = json.loads((out / "config.json").read_text())
    ropes = widths["qk_rope_head_dim_per_layer"] or 2 * [widths["qk_rope_head_dim"]]
    queries = 4 * (widths["qk_nope_head_dim"] + ropes[1])
    assert tensors[f"{prefix}q_a_proj.weight"].shape == (24, 64)
    assert tensors[f"{prefix}q_b_proj.weight"].shape == (queries, 24)
    assert (f"{prefix}q_b_proj.bias" in tensors) == bias
    assert not any("q_proj" in name for name in tensors)


def test_saved_and_loaded_again_by_transformers(tmp_path):
    model = convert_tiny(save_tiny(tmp_path / "source"), tmp_path / "out", q_lora_rank=24)
    model.save_pretrained(tmp_path / "again")
    again, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "again", output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert torch.equal(logits(again.eval()), logits(model))
