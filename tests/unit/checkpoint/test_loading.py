"""Converted checkpoints that are damaged: refused in one line, never completed by chance."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from conversion.checkpoint.loading import load_converted
from tests.support.tiny_converted import save_tiny_converted
from vllm_mha2mla.errors import CheckpointError

NAME = "model.layers.1.self_attn.o_proj.weight"


@pytest.fixture
def folder(tmp_path):
    return save_tiny_converted(tmp_path / "converted")


def refused(folder):
    with pytest.raises(CheckpointError) as error:
        load_converted(folder, torch.float32)
    assert str(error.value).startswith((f"{folder}: ", "config.json: "))
    assert str(error.value).isprintable()
    return str(error.value)


def change_weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_an_undamaged_one(folder):
    load_converted(folder, torch.float32)


def test_a_missing_tensor_is_not_made_up(folder):
    change_weights(folder, lambda tensors: tensors.pop(NAME))
    assert f"tensor {NAME} is missing" in refused(folder)


@pytest.mark.parametrize("name", ["model.layers.1.more", "model.model.embed_tokens.weight"])
def test_a_tensor_of_nothing(folder, name):
    change_weights(folder, lambda tensors: tensors.update({name: torch.zeros(1)}))
    assert f"tensor {name} is unknown" in refused(folder)


def test_a_tensor_that_is_not_finite(folder):
    change_weights(folder, lambda tensors: tensors[NAME].view(-1)[-1:].fill_(torch.nan))
    assert f"{NAME} holds NaN or infinite values" in refused(folder)


def test_weights_that_are_cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    assert "weights cannot be loaded" in refused(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"attention_scale": float("nan")},
        {"attention_scale": 0.0},
        {"attention_scale": -1.0},
        {"sliding_window": [1]},
        {"sliding_window": 16, "layer_types": ["sliding_attention"] * 5},
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
        {"q_lora_rank": 0.5},
        {"kv_lora_rank_per_layer": ["8"] * 5},
        {"save_pretrained": "x"},
        {"attn_implementation": "evil"},
    ],
    ids=str,
)
def test_a_config_that_cannot_be(folder, changes):
    change_config(folder, **changes)
    refused(folder)


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_damaged_tokenizer(folder, file, text):
    (folder / file).write_text(text)
    refused(folder)
