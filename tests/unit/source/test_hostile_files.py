"""Files that are none, links that lead out, keys that are methods: one line for each."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from conversion.errors import SourceError
from conversion.source import open_source
from conversion.source.assets import copy_assets
from tests.support.tiny import save_tiny


@pytest.fixture
def folder(tmp_path):
    return save_tiny(tmp_path / "source")


def refused(folder):
    with pytest.raises(SourceError) as error:
        open_source(str(folder)).tokenizer()
    assert str(error.value).isprintable()
    return str(error.value)


def change_config(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def to_blobs(folder):
    """The folder as the hub's cache holds it."""
    cache = folder.parent / "models--a--b"
    (cache / "blobs").mkdir(parents=True)
    snapshot = cache / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    for at, path in enumerate(sorted(folder.iterdir())):
        path.rename(cache / "blobs" / f"{at:040x}")
        (snapshot / path.name).symlink_to(f"../../blobs/{at:040x}")
    return snapshot


@pytest.mark.parametrize("name", ["tokenizer.json", "generation_config.json", "merges.txt"])
def test_a_pipe_in_a_files_place_does_not_block(folder, name):
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    assert f"{name} is not a plain file" in refused(folder)


def test_a_pipe_in_a_shards_place_does_not_block(tmp_path):
    folder = save_tiny(tmp_path / "source", shard_size="60KB")
    shard = min(folder.glob("*.safetensors"))
    shard.unlink()
    os.mkfifo(shard)
    assert f"shard {shard.name} is missing" in refused(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_json_of_gigabytes_is_not_read(folder, name):
    with (folder / name).open("r+b") as file:
        file.truncate(1 << 40)
    assert f"{name} has 1,099,511,627,776 bytes" in refused(folder)


@pytest.mark.parametrize("name", ["LICENSE", "additional_chat_templates/x.jinja"])
def test_a_link_out_of_the_folder_is_not_published(folder, tmp_path, name):
    (tmp_path / "secret").write_text("the user's")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).symlink_to(tmp_path / "secret")
    with pytest.raises(SourceError, match="a link out of the model's folder"):
        open_source(str(folder)).check_assets()
    (tmp_path / "out").mkdir()
    with pytest.raises(SourceError, match="a link out of the model's folder"):
        copy_assets(folder, tmp_path / "out")
    copies = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert "the user's" not in [path.read_text() for path in copies]


def test_links_of_the_hubs_cache_are_followed(folder, tmp_path):
    (folder / "LICENSE").write_text("Free")
    snapshot = to_blobs(folder)
    source = open_source(str(snapshot))
    assert len(source.tokenizer()) == 256
    (tmp_path / "out").mkdir()
    source.write_assets(tmp_path / "out")
    assert (tmp_path / "out" / "LICENSE").read_text() == "Free"
    assert not (tmp_path / "out" / "LICENSE").is_symlink()


@pytest.mark.parametrize("key", ["save_pretrained", "sub_configs"])
def test_a_config_that_replaces_what_its_class_has(folder, key):
    change_config(folder, **{key: "x"})
    assert f"{key} is no key of a config" in refused(folder)


def test_a_quantisation_that_nobody_can_read(folder):
    change_config(folder, compression_config=-0.0)
    assert "quantised" in refused(folder)


def test_two_tensors_for_one_place(folder):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["model.model.norm.weight"] = torch.zeros(64)
    save_file(tensors, path)
    line = refused(folder)
    assert "model.norm.weight" in line
    assert "two tensors for one place" in line


def test_names_are_shown_on_one_line(folder):
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"a\n\x1b[31mb": torch.zeros(1)}, folder / "model.safetensors")
    assert "the first is a\\n\\x1b[31mb" in refused(folder)


def test_an_adapter_config_that_nobody_can_read(folder):
    (folder / "adapter_config.json").write_text("[" * 100_000)
    assert "a model with an adapter beside it" in refused(folder)


@pytest.mark.parametrize("file", ["a" * 5000, "model.safetensors\n"])
def test_an_index_of_files_that_cannot_be(folder, file):
    names = load_file(folder / "model.safetensors")
    Path(folder / "model.safetensors").unlink()
    index = {"weight_map": dict.fromkeys(names, file)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder)


@pytest.mark.parametrize("metadata", ["x", [], 3])
def test_an_index_that_transformers_refuses(folder, metadata):
    weight_map = dict.fromkeys(load_file(folder / "model.safetensors"), "model.safetensors")
    index = {"weight_map": weight_map, "metadata": metadata}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "is not a safetensors index" in refused(folder)


@pytest.mark.parametrize("text", ["null", "[" * 100_000])
def test_a_generation_config_that_transformers_refuses(folder, text):
    (folder / "generation_config.json").write_text(text)
    assert "generation_config.json cannot be read" in refused(folder)
