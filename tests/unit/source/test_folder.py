"""Tensors of a folder: what is refused when one is read."""

import json

import pytest
import torch
from safetensors.torch import save_file

from conversion.errors import SourceError
from conversion.source.folder import FolderCheckpoint
from tests.support.tiny import save_tiny


def test_a_layer_without_rotary_components_has_empty_frequencies(tmp_path):
    folder = save_tiny(tmp_path / "source")
    tensors = {"none": torch.empty(0), "bad": torch.tensor([1.0, torch.nan])}
    save_file(tensors, folder / "model.safetensors")
    checkpoint = FolderCheckpoint(folder)
    assert checkpoint.tensor("none").numel() == 0
    with pytest.raises(SourceError, match=r"bad in model\.safetensors holds NaN"):
        checkpoint.tensor("bad")


@pytest.mark.parametrize("shard", ["../other/model.safetensors", "shards/1.safetensors", 3])
def test_shards_are_files_of_the_folder(tmp_path, shard):
    folder = save_tiny(tmp_path / "source")
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"model.embed_tokens.weight": shard}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(SourceError, match="is not a safetensors index"):
        FolderCheckpoint(folder)
