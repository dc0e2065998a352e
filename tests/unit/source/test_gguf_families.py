"""GGUF files of every family compute what the family's folder does.

Names come from the package gguf, and the reordered rows, the offset of norms and the metadata are
those of llama.cpp's converter.
"""

import pytest
import torch
from safetensors.torch import load_file

from conversion.checkpoint.loading import source_model
from conversion.errors import SourceError
from conversion.source import open_source
from tests.support.gguf import VOCABULARY, family_tensors, logits, write_gguf
from tests.support.tiny_families import FAMILIES

IDS = torch.randint(0, 256, (1, 200), generator=torch.Generator().manual_seed(1))
EXPERTS = {"{arch}.expert_count": 4, "{arch}.expert_used_count": 2}
GRANITE = {
    "{arch}.attention.scale": 0.2,
    "{arch}.embedding_scale": 1.5,
    "{arch}.residual_scale": 0.8,
    "{arch}.logit_scale": 3.0,
}
# family -> architecture, whether rows are reordered, more metadata, changes of the tiny model.
CASES = {
    "Llama": ("llama", True, {}, {}),
    "Mistral": ("llama", True, {}, {}),
    "Qwen2": ("qwen2", False, {}, {}),
    # Of its biases GGUF has none.
    "Qwen3": ("qwen3", False, {}, {"attention_bias": False}),
    "Phi3": ("phi3", False, {"{arch}.attention.sliding_window": 0}, {}),
    "Granite": ("granite", True, GRANITE, {}),
    "Olmo2": ("olmo2", False, {}, {}),
    # llama.cpp turns nothing in every fourth layer.
    "SmolLM3": ("smollm3", True, {}, {"no_rope_layers": None, "num_hidden_layers": 4}),
    "Gemma": ("gemma", False, {}, {}),
    "Mixtral": ("llama", True, EXPERTS, {}),
    "Qwen3Moe": (
        "qwen3moe",
        False,
        EXPERTS | {"{arch}.expert_feed_forward_length": 32},
        {"norm_topk_prob": True},
    ),
    "Olmoe": ("olmoe", False, EXPERTS, {}),
    "Cohere": (
        "command-r",
        False,
        {
            "{arch}.logit_scale": 0.4,
            "{arch}.attention.layer_norm_rms_epsilon": None,
            "{arch}.attention.layer_norm_epsilon": 1e-5,
            "{arch}.rope.scaling.type": "none",
        },
        {},
    ),
}


def written(tmp_path, name, metadata=None):
    architecture, permuted, more, changes = CASES[name]
    original = FAMILIES[name].original(vocab_size=VOCABULARY, **changes)
    original.save_pretrained(tmp_path / "folder")
    stored = load_file(tmp_path / "folder/model.safetensors")
    offset = 1.0 if name == "Gemma" else 0.0
    tensors = family_tensors(stored, original.config, architecture, permuted, offset)
    keys = more | (metadata or {})
    path = write_gguf(tmp_path / "model.gguf", tensors, original.config, keys, architecture)
    return path, original


@pytest.mark.parametrize("name", CASES)
def test_a_file_computes_what_the_folder_does(tmp_path, name):
    path, original = written(tmp_path, name)
    source = open_source(str(path))
    # Both are float32, and differ in the order of sums.
    torch.testing.assert_close(
        logits(source_model(source, torch.float32), IDS), logits(original, IDS), atol=2e-4, rtol=0
    )


@pytest.mark.parametrize(
    ("name", "metadata", "message"),
    [
        ("Granite", {"{arch}.attention.scale": None}, "granite.attention.scale is missing"),
        ("Phi3", {"{arch}.attention.sliding_window": 64}, "a window of 64 tokens"),
        ("Olmo2", {"{arch}.attention.sliding_window": 64}, "a window of 64 tokens"),
        ("Qwen3Moe", {"{arch}.expert_shared_count": 1}, "expert_shared_count = 1 is not known"),
        ("Qwen2", {"{arch}.rope.dimension_sections": [2, 2]}, "dimension_sections"),
    ],
)
def test_refusals(tmp_path, name, metadata, message):
    path, _ = written(tmp_path, name, metadata)
    with pytest.raises(SourceError) as error:
        open_source(str(path))
    assert message in str(error.value)
