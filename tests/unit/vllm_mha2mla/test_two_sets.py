"""A checkpoint that was saved in parts over one in a single file."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.support.tiny_converted import save_tiny_converted
from vllm_mha2mla.errors import CheckpointError
from vllm_mha2mla.two_sets import INDEX, SINGLE, refuse_two_sets


@pytest.fixture
def folder(tmp_path):
    folder = save_tiny_converted(tmp_path / "converted")
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(2)
    model.save_pretrained(folder, max_shard_size="60KB")
    return folder


def test_it_is_refused(folder):
    for read in (AutoModelForCausalLM.from_pretrained, refuse_two_sets):
        with pytest.raises(CheckpointError, match="holds two models"):
            read(folder)


def test_either_alone_is_read(folder):
    (folder / SINGLE).rename(folder / "old.safetensors")
    refuse_two_sets(folder)
    parts = AutoModelForCausalLM.from_pretrained(folder).model.embed_tokens.weight
    (folder / INDEX).unlink()
    (folder / "old.safetensors").rename(folder / SINGLE)
    single = AutoModelForCausalLM.from_pretrained(folder).model.embed_tokens.weight
    assert torch.equal(parts, 2 * single)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": []}'])
def test_a_damaged_index_is_left_to_its_reader(folder, text):
    (folder / INDEX).write_text(text)
    refuse_two_sets(folder)
