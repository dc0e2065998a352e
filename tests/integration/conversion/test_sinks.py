"""Sink tokens: sequences of one token, as the first of every text is."""

import torch
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from conversion.text.sinks import sink_tokens
from tests.support.convert import convert_tiny, windows
from tests.support.divergence import divergence
from tests.support.tiny import save_tiny, tiny_tokenizer


def test_special_tokens_are_among_the_sinks_and_the_others_are_the_texts():
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<first>", "eos_token": "<last>"})
    ids = windows()
    sinks = sink_tokens(tokenizer, ids, vocab_size=257)
    assert sinks.shape == ids.shape[1:]
    # "<last>" is 257, beyond the vocabulary.
    assert (sinks == 256).sum() == 128 // 16
    assert set(sinks.tolist()) - {256} <= set(ids.flatten().tolist())
    assert sinks[sinks != 256].unique().numel() > 10


def test_a_tokenizer_without_special_tokens():
    sinks = sink_tokens(tiny_tokenizer(), windows(), vocab_size=256)
    assert sinks.shape == (128,)


def test_a_refit_keeps_what_texts_begin_with(tmp_path):
    source = save_tiny(tmp_path / "source")
    original = LlamaForCausalLM.from_pretrained(source).eval()
    recipe = {
        "cache_fraction": 0.3, "bits": 16, "refit": True, "refit_tokens": 512,
        "calibration_tokens": 512, "ridge": 50,
    }  # fmt: skip
    texts = windows().unique()[:, None]  # [tokens, 1]
    found = {}
    for sinks in (False, True):
        model = convert_tiny(source, tmp_path / f"{sinks}", refit_sinks=sinks, **recipe)
        found[sinks] = divergence(original, model, texts)
    assert 0 < found[True] < 0.95 * found[False]
    without, with_sinks = (
        load_file(tmp_path / f"{sinks}" / "model.safetensors") for sinks in (False, True)
    )
    changed = {name for name in without if not torch.equal(without[name], with_sinks[name])}
    assert changed == {name for name in without if "self_attn.o_proj" in name}


def test_tokens_alone_pass_through_layers_as_texts_of_one_token(tmp_path):
    # Nothing truncated, a refit finds what is there already, of texts of one token too.
    source = save_tiny(tmp_path / "source")
    original = LlamaForCausalLM.from_pretrained(source).eval()
    model = convert_tiny(source, tmp_path / "out", kv_lora_rank=64, rope_dim=32, refit=True)
    assert divergence(original, model, windows().unique()[:, None]) < 1e-6
