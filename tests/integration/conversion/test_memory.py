"""A conversion needs the activations and three times its largest layer, however many there are."""

import json
import os
import subprocess
import sys

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from conversion.allocation import choose as choices
from conversion.allocation import coded
from conversion.layers import latent_tensors
from conversion.layers.original import SourceLayers
from conversion.recipes.recipe import REFIT_SHARE
from conversion.source import open_source
from tests.support.convert import convert_tiny
from tests.support.tiny import TEXT, save_tiny, tiny_llama, tiny_tokenizer

TOKENS, WINDOW, HELD_OUT = 4096, 256, 512
# Freed tensors below 5 MiB stay in the process (conversion/memory.py), and matrices rounded to
# bfloat16 are copies. Neither grows with the number of layers, but beside the 58 MiB of a layer
# here it shows: with two threads 25 MiB above three layers, and every thread has its own heap.
HEAP = 64 << 20
# oneDNN keeps compiled products with their scratch memory, 30 MiB here: a library's, not a model's.
NO_LIBRARY_CACHE = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "0"}
WIDE = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "num_hidden_layers": 6,
    # In float32 more than the whole bound.
    "vocab_size": 65536,
    "tie_word_embeddings": False,
}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wide") / "source"
    tiny_llama(**WIDE).to(torch.bfloat16).save_pretrained(folder, max_shard_size="64MB")
    tiny_tokenizer().save_pretrained(folder)
    (folder.parent / "text.txt").write_text(TEXT * 8)
    return folder


def layer_bytes(source):
    layer = open_source(str(source)).layer(0, torch.float32)
    return sum(tensor.nbytes for tensor in layer.parameters())


def activation_bytes(refit, spread=False):
    token = 4 * WIDE["hidden_size"]
    # The original stream; with a refit, of more text and a window of sink tokens, the converted
    # one and the heads' outputs. To spread the budget, the held-out text before every layer and
    # after the last, and two gradients of it.
    held_out = HELD_OUT * token * (WIDE["num_hidden_layers"] + 1 + 2) if spread else 0
    streams = 3 * (REFIT_SHARE * TOKENS + WINDOW) if refit else TOKENS
    return token * streams + held_out


def peak(source, out, refit=False, spread=False, offload=None, keep=False):
    recipe = {
        "calibration": [str(source.parent / "text.txt")],
        "calibration_tokens": TOKENS,
        "window": WINDOW,
        "refit": refit,
        "held_out_tokens": HELD_OUT,
        "split": "auto" if spread else "fixed",
    }
    arguments = json.dumps([str(source), str(out), recipe, offload and str(offload), keep])
    result = subprocess.run(
        [sys.executable, "-m", "tests.support.peak_memory", arguments],
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | NO_LIBRARY_CACHE,
    )
    assert result.returncode == 0, result.stderr
    return int(result.stdout)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("refit", "spread"), [(False, False), (True, True)], ids=["plain", "as by default"]
)
def test_memory_is_the_activations_and_three_layers(source, tmp_path, refit, spread):
    bound = activation_bytes(refit, spread) + 3 * layer_bytes(source) + HEAP
    assert peak(source, tmp_path / "out", refit, spread) <= bound


@pytest.mark.slow
def test_offloaded_activations_need_no_memory(source, tmp_path):
    found = peak(source, tmp_path / "out", refit=True, offload=tmp_path)
    assert found <= 3 * layer_bytes(source) + HEAP
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.slow
def test_the_bound_is_broken_when_layers_stay(source, tmp_path):
    bound = activation_bytes(False) + 3 * layer_bytes(source) + HEAP
    assert peak(source, tmp_path / "out", keep=True) > bound


@pytest.mark.parametrize("bits", ["16", "auto"])
def test_converted_layers_are_in_memory_one_at_a_time(tmp_path, monkeypatch, bits):
    # At Llama-3-8B's shape the query of one candidate takes 370 MiB, the whole layer 832.
    queries: list[StorageWeakRef] = []
    going = latent_tensors.balanced

    def watched(tensors, heads, widths):
        assert all(query.expired() for query in queries)
        before = tensors["q_proj.weight"].untyped_storage()
        found = going(tensors, heads, widths)
        assert found["q_proj.weight"].untyped_storage().data_ptr() == before.data_ptr()
        queries.append(StorageWeakRef(before))
        return found

    monkeypatch.setattr(latent_tensors, "balanced", watched)
    source = save_tiny(tmp_path / "source")
    convert_tiny(source, tmp_path / "out", cache_fraction=0.5, bits=bits)
    assert len(queries) >= 20


@pytest.mark.parametrize(("bits", "weighing"), [("16", choices), ("auto", coded)])
def test_mlps_are_gone_while_candidates_are_weighed(tmp_path, monkeypatch, bits, weighing):
    # Five sixths of a layer of Llama-3-8B's shape.
    load, costs = SourceLayers.load, weighing.layer_costs
    mlps: list[StorageWeakRef] = []
    weighed = []

    def watched_load(layers, index):
        loaded = load(layers, index)
        mlps.append(StorageWeakRef(loaded.mlp.gate_proj.weight.untyped_storage()))
        return loaded

    def watched_costs(*arguments):
        assert all(mlp.expired() for mlp in mlps)
        weighed.append(arguments)
        return costs(*arguments)

    monkeypatch.setattr(SourceLayers, "load", watched_load)
    monkeypatch.setattr(weighing, "layer_costs", watched_costs)
    source = save_tiny(tmp_path / "source")
    convert_tiny(source, tmp_path / "out", cache_fraction=0.5, bits=bits)
    assert mlps
    assert weighed
