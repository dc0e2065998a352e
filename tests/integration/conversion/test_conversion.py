"""Whole conversions of tiny models, against transformers' original."""

import json
import logging

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from conversion.calibration.store import StatisticsStore
from conversion.checkpoint.export import export
from conversion.pipeline import Options, calibration_text, convert
from conversion.recipes.recipe import Recipe
from conversion.runtime.progress import Progress
from conversion.source import open_source
from tests.support.convert import convert_tiny, windows
from tests.support.divergence import divergence
from tests.support.ropes import llama3, yarn
from tests.support.tiny import TEXT, VARIANTS, save_tiny, tiny_llama, tiny_tokenizer
from vllm_mha2mla.config import CONSTANTS


@pytest.mark.parametrize(
    ("variant", "changes"),
    [
        *((variant, {}) for variant in VARIANTS),
        ("gqa", {"attention_bias": True}),
        ("gqa", {"tie_word_embeddings": False, "head_dim": 32}),
        ("gqa", {"rope_parameters": llama3()}),
        ("gqa", {"rope_parameters": yarn()}),
    ],
)
@pytest.mark.parametrize(
    "recipe", [{}, {"method": "mha2mla"}, {"refit": True}], ids=["calibrated", "mha2mla", "refit"]
)
def test_nothing_truncated_is_the_original(tmp_path, variant, changes, recipe):
    source = save_tiny(tmp_path / "source", variant, **changes)
    converted = convert_tiny(source, tmp_path / "out", cache_fraction=1, **recipe)
    original = LlamaForCausalLM.from_pretrained(source).eval()
    with torch.no_grad():
        expected, actual = original(windows()).logits, converted(windows()).logits
    # Factors are multiplied in another order: float32 rounding of logits up to about 20.
    assert float(expected.abs().max()) > 5
    torch.testing.assert_close(actual, expected, atol=2e-3, rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_half_the_cache_beats_the_paper_before_training(tmp_path, variant):
    source = save_tiny(tmp_path / "source", variant)
    original = LlamaForCausalLM.from_pretrained(source).eval()

    ours = convert_tiny(source, tmp_path / "ours", cache_fraction=0.5)
    paper = convert_tiny(source, tmp_path / "paper", cache_fraction=0.5, method="mha2mla")
    assert 0 < divergence(original, ours, windows()) < divergence(original, paper, windows())


def test_a_refit_follows_the_original_more_closely(tmp_path):
    source = save_tiny(tmp_path / "source")
    original = LlamaForCausalLM.from_pretrained(source).eval()
    distance = {}
    for refit in (False, True):
        model = convert_tiny(
            source,
            tmp_path / f"{refit}",
            cache_fraction=0.4,
            refit=refit,
            ridge=20,
            split="fixed",
        )
        with torch.no_grad():
            ours, theirs = (m.model(windows()).last_hidden_state for m in (model, original))
        distance[refit] = float((ours - theirs).square().mean())
    assert distance[True] < 0.8 * distance[False]


@pytest.mark.parametrize(
    "recipe",
    [
        {"kv_lora_rank": 12, "rope_dim": 4},
        {"cache_fraction": 0.3, "bits": 16},
        {"cache_fraction": 0.3, "method": "mha2mla", "refit": True},
    ],
)
def test_the_weight_of_tokens_is_for_the_refit_alone(tmp_path, recipe):
    source = save_tiny(tmp_path / "source")
    for weigh in (False, True):
        convert_tiny(source, tmp_path / f"{weigh}", weigh_tokens=weigh, **recipe)
    equal, weighed = (
        load_file(tmp_path / f"{weigh}" / "model.safetensors") for weigh in (False, True)
    )
    changed = {name for name in equal if not torch.equal(equal[name], weighed[name])}
    projections = {name for name in equal if "self_attn.o_proj" in name}
    assert changed == projections


@pytest.mark.parametrize("refit", [False, True])
def test_refit_tokens_are_for_the_refit_alone(tmp_path, refit):
    source, text = save_tiny(tmp_path / "source"), tmp_path / "text.txt"
    text.write_text(TEXT)
    recipe = Recipe(
        calibration=[str(text)], calibration_tokens=256, refit_tokens=1024, window=128, refit=refit
    )
    original, store = open_source(str(source)), StatisticsStore(tmp_path / "statistics")
    convert(original, tmp_path / "out", recipe, Options(), Progress(), store)
    measured = calibration_text(original, recipe).measured
    assert measured.shape == (2, 128)
    # The first layer's input: the normed embeddings of the measured windows.
    model = LlamaForCausalLM.from_pretrained(source).model
    inputs = model.layers[0].input_layernorm(model.embed_tokens(measured)).flatten(0, 1).double()
    expected = (inputs.T @ inputs / len(inputs)).detach()
    # Products of a window are float32.
    torch.testing.assert_close(store.get(0).token_moment, expected, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_generation_with_the_latent_cache_is_generation_without(tmp_path, implementation):
    source = save_tiny(tmp_path / "source")
    model = convert_tiny(source, tmp_path / "out", kv_lora_rank=20, rope_dim=6)
    model.set_attn_implementation(implementation)
    prompt = windows()[:2, :50]
    cached = model.generate(
        prompt, max_new_tokens=20, do_sample=False, return_dict_in_generate=True, pad_token_id=0
    )
    ids = prompt
    with torch.no_grad():
        for _ in range(20):
            step = model(ids, use_cache=False).logits[:, -1]
            ids = torch.cat((ids, step.argmax(-1, keepdim=True)), dim=1)
    assert torch.equal(cached.sequences, ids)
    for layer in cached.past_key_values.layers:
        assert layer.keys.shape == (2, 1, 69, 20)
        assert layer.values.shape == (2, 1, 69, 6)


def test_left_padding_does_not_change_a_prompt(tmp_path):
    model = convert_tiny(save_tiny(tmp_path / "source"), tmp_path / "out", cache_fraction=0.5)
    prompt = windows()[:1, :30]
    padded = torch.nn.functional.pad(prompt, (7, 0))
    mask = torch.nn.functional.pad(torch.ones_like(prompt), (7, 0))
    position_ids = (mask.cumsum(-1) - 1).clamp_min(0)
    with torch.no_grad():
        alone = model(prompt).logits
        batched = model(padded, attention_mask=mask, position_ids=position_ids).logits
    torch.testing.assert_close(batched[:, 7:], alone, atol=1e-4, rtol=0)


def test_shards_dtypes_and_everything_else_are_carried_over(tmp_path):
    source = save_tiny(tmp_path / "source", shard_size="60KB", tie_word_embeddings=False)
    (source / "generation_config.json").write_text('{"temperature": 0.25}')
    (source / "chat_template.jinja").write_text("{{ messages }}")
    (source / "pytorch_model.bin").write_bytes(b"not carried over")
    convert_tiny(source, tmp_path / "out", cache_fraction=0.5)
    out = tmp_path / "out"
    shards = {path.name for path in source.glob("*.safetensors")}
    assert len(shards) > 2
    assert {path.name for path in out.glob("*.safetensors")} == shards
    for name in ("generation_config.json", "chat_template.jinja", "tokenizer.json"):
        assert (out / name).read_bytes() == (source / name).read_bytes()
    assert not (out / "pytorch_model.bin").exists()

    index = json.loads((out / "model.safetensors.index.json").read_text())["weight_map"]
    for shard in shards:
        before, after = load_file(source / shard), load_file(out / shard)
        assert set(after) == {name for name, where in index.items() if where == shard}
        for name, tensor in before.items():
            if "self_attn" not in name:
                assert torch.equal(after[name], tensor)
                assert after[name].dtype == tensor.dtype


@pytest.mark.parametrize(
    ("stored", "requested", "written"),
    [
        (torch.float32, None, torch.bfloat16),
        (torch.bfloat16, None, torch.bfloat16),
        (torch.float16, None, torch.float16),
        (torch.float32, torch.float32, torch.float32),
        (torch.float32, torch.bfloat16, torch.bfloat16),
    ],
)
def test_output_dtype(tmp_path, caplog, stored, requested, written):
    source = tmp_path / "source"
    model = tiny_llama().to(stored)
    # As some exporters leave it: an engine serves all weights in one dtype.
    model.model.norm.float()
    model.save_pretrained(source)
    tiny_tokenizer().save_pretrained(source)
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    recipe = Recipe(calibration=[str(text)], calibration_tokens=256, window=128)
    options = Options(dtype=requested)
    with caplog.at_level(logging.INFO):
        convert(open_source(str(source)), tmp_path / "out", recipe, options, Progress())
        export(open_source(str(source)), tmp_path / "plain", requested, False, Progress())
    for out in ("out", "plain"):
        for name, tensor in load_file(tmp_path / out / "model.safetensors").items():
            assert tensor.dtype == (torch.float32 if name.endswith(CONSTANTS) else written)
        assert AutoConfig.from_pretrained(tmp_path / out).dtype == written
    # Of the conversion and of the export.
    chosen = requested is None and stored is torch.float32
    assert caplog.text.count("pass --dtype float32") == (2 if chosen else 0)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.dtype == written
    assert model.model.layers[0].self_attn.rope_inv_freq.dtype == torch.float32


def test_a_conversion_can_be_repeated(tmp_path):
    source = save_tiny(tmp_path / "source")
    convert_tiny(source, tmp_path / "a", cache_fraction=0.4)
    convert_tiny(source, tmp_path / "b", cache_fraction=0.4)
    first, second = (load_file(tmp_path / n / "model.safetensors") for n in "ab")
    assert all(torch.equal(first[name], second[name]) for name in first)
