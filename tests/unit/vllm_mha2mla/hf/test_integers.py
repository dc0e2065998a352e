"""Converted checkpoints whose weights are integers, and not quantised."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from conversion.checkpoint.inspection import inspect
from tests.support.tiny_converted import save_tiny_converted
from vllm_mha2mla.errors import CheckpointError

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The bits of one float32 matrix are called int32, as a damaged header does."""
    folder = save_tiny_converted(tmp_path_factory.mktemp("integers"))
    tensors = load_file(folder / WEIGHTS)
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name] = tensors[name].view(torch.int32)
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    return folder


@pytest.mark.parametrize("read", [AutoModelForCausalLM.from_pretrained, inspect])
def test_they_are_refused(folder, read):
    with pytest.raises(CheckpointError, match=r"1\.mlp\.up_proj\.weight is stored in I32"):
        read(folder)
