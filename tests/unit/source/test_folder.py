"""Tensors of a folder: which are read, under which names, and what is refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from conversion.checkpoint.loading import source_model
from conversion.errors import SourceError
from conversion.source import open_source
from conversion.source.folder import FolderCheckpoint
from tests.support.gguf import logits
from tests.support.tiny import save_tiny

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
IDS = torch.arange(40).unsqueeze(0)


@pytest.fixture
def folder(tmp_path):
    return save_tiny(tmp_path / "source")


@pytest.fixture
def sharded(tmp_path):
    return save_tiny(tmp_path / "sharded", shard_size="60KB")


def refused(folder):
    with pytest.raises(SourceError) as error:
        open_source(str(folder))
    assert "\n" not in str(error.value)
    return str(error.value)


def as_transformers(folder):
    """The source computes what transformers computes of the folder; returns it."""
    source = open_source(str(folder))
    expected = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert torch.equal(
        logits(source_model(source, torch.float32), IDS), logits(expected.eval(), IDS)
    )
    return source


def change_weights(file, change):
    tensors = load_file(file)
    save_file(change(tensors) or tensors, file, metadata={"format": "pt"})


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_layer_without_rotary_components_has_empty_frequencies(folder):
    tensors = {"model.none": torch.empty(0), "model.bad": torch.tensor([1.0, torch.nan])}
    save_file(tensors, folder / WEIGHTS)
    checkpoint = FolderCheckpoint(folder)
    assert checkpoint.tensor("model.none").numel() == 0
    with pytest.raises(SourceError, match=r"bad in model\.safetensors holds NaN"):
        checkpoint.tensor("model.bad")


@pytest.mark.parametrize("shard", ["../other/model.safetensors", "shards/1.safetensors", 3])
def test_shards_are_files_of_the_folder(folder, shard):
    (folder / WEIGHTS).unlink()
    index = {"weight_map": {"model.embed_tokens.weight": shard}}
    (folder / INDEX).write_text(json.dumps(index))
    assert "is not a safetensors index" in refused(folder)


def test_two_sets_of_weights(folder, sharded):
    (sharded / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes())
    assert "holds two models: model.safetensors, which transformers reads" in refused(sharded)


def test_an_index_of_one_file(folder):
    names = load_file(folder / WEIGHTS)
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, WEIGHTS)}))
    as_transformers(folder)


def test_weights_that_the_config_names(folder):
    (folder / WEIGHTS).rename(folder / "mine.safetensors")
    change_config(folder, transformers_weights="mine.safetensors")
    source = as_transformers(folder)
    assert not hasattr(source.config, "transformers_weights")
    change_config(folder, transformers_weights="../mine.safetensors")
    assert "names the weights ../mine.safetensors" in refused(folder)


def test_a_tensor_in_two_shards(sharded):
    one, two = sorted(sharded.glob("*.safetensors"))[:2]
    name, tensor = next(iter(load_file(one).items()))
    change_weights(two, lambda tensors: tensors | {name: tensor})
    as_transformers(sharded)
    change_weights(two, lambda tensors: tensors | {name: tensor + 1})
    assert f"hold different tensors {name}" in refused(sharded)


@pytest.mark.parametrize("tied", [True, False])
def test_a_decoder_that_was_saved_alone(tmp_path, tied):
    folder = save_tiny(tmp_path / "source", tie_word_embeddings=tied)
    change_weights(
        folder / WEIGHTS, lambda tensors: {k.removeprefix("model."): v for k, v in tensors.items()}
    )
    as_transformers(folder)


def test_a_model_that_was_saved_within_another(tmp_path):
    folder = save_tiny(tmp_path / "source", tie_word_embeddings=False)
    change_weights(folder / WEIGHTS, lambda tensors: {f"model.{k}": v for k, v in tensors.items()})
    as_transformers(folder)


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_a_stored_head_beside_a_tied_embedding(folder, offset):
    embedding = load_file(folder / WEIGHTS)["model.embed_tokens.weight"]
    noise = torch.randn(embedding.shape, generator=torch.Generator().manual_seed(0))
    change_weights(
        folder / WEIGHTS, lambda tensors: tensors | {"lm_head.weight": embedding + offset * noise}
    )
    source = as_transformers(folder)
    assert source.config.tie_word_embeddings == (offset == 0.0)


def test_dtypes_that_are_mixed(folder):
    kinds = (torch.bfloat16, torch.float16, torch.float32)

    def mix(tensors):
        return {k: v.to(kinds[at % 3]) for at, (k, v) in enumerate(sorted(tensors.items()))}

    change_weights(folder / WEIGHTS, mix)
    as_transformers(folder)


def test_the_fingerprint_tells_a_merged_adapter(tmp_path):
    """A matrix in the middle of a file whose first and last MiB stay the same."""
    folder = save_tiny(tmp_path / "source", vocab_size=4096, hidden_size=128, num_hidden_layers=12)
    before = open_source(str(folder)).fingerprint()
    assert open_source(str(folder)).fingerprint() == before
    size = (folder / WEIGHTS).stat().st_size
    data = (folder / WEIGHTS).read_bytes()
    name = "model.layers.1.self_attn.q_proj.weight"
    change_weights(folder / WEIGHTS, lambda tensors: tensors | {name: tensors[name] + 0.01})
    after = (folder / WEIGHTS).read_bytes()
    assert (after[: 1 << 20], after[-(1 << 20) :]) == (data[: 1 << 20], data[-(1 << 20) :])
    assert (folder / WEIGHTS).stat().st_size == size
    assert open_source(str(folder)).fingerprint() != before


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 10**9},
        {"num_attention_heads": 0},
        {"num_attention_heads": "four"},
        {"head_dim": -16},
        {"hidden_size": None},
        {"rope_parameters": {"rope_type": "nobody's"}},
        {"vocab_size": 10**12},
        {"pad_token_id": 10**6},
        {"dtype": ""},
        {"_attn_implementation": "flash_attention_2"},
    ],
    ids=str,
)
def test_a_config_that_cannot_be(folder, changes):
    change_config(folder, **changes)
    refused(folder)


@pytest.mark.parametrize("text", ["[]", "3", "{", "", '{"model_type": ["llama"]}', "\xff"])
def test_a_config_that_is_none(folder, text):
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    refused(folder)
