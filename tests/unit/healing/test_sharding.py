"""A model cut while it is read: the same numbers, and what is refused."""

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed import HashStore, destroy_process_group, init_process_group
from torch.distributed.tensor import DTensor
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from conversion.errors import SourceError
from conversion.healing.sharding import gathered, local_part, shard
from conversion.source.folder import FolderCheckpoint
from tests.support.tiny import save_tiny, tiny_llama

CPU = torch.device("cpu")


@pytest.fixture
def alone():
    """A group of one process: all of the sharding but the others."""
    init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    yield
    destroy_process_group()


def sharded(checkpoint):
    with torch.device("meta"):
        model = LlamaForCausalLM(checkpoint.config).requires_grad_(False)
    model.model.layers[0].self_attn.requires_grad_(True)
    model.model.layers[1].mlp.bfloat16()
    return shard(model.eval(), checkpoint, LlamaRotaryEmbedding(checkpoint.config), CPU)


@pytest.mark.parametrize("tied", [True, False])
def test_the_same_model(alone, tmp_path, tied):
    checkpoint = FolderCheckpoint(save_tiny(tmp_path / "source", tie_word_embeddings=tied))
    model = sharded(checkpoint)
    stored = load_file(tmp_path / "source" / "model.safetensors")
    for name, parameter in model.named_parameters():
        assert isinstance(parameter, DTensor)
        assert parameter.requires_grad == name.startswith("model.layers.0.self_attn.")
        rounded = torch.bfloat16 if name.startswith("model.layers.1.mlp.") else torch.float32
        assert torch.equal(gathered(parameter), stored[name].to(rounded)), name
        with torch.no_grad():
            local_part(parameter).add_(1)
        assert torch.equal(gathered(parameter), stored[name].to(rounded) + 1), name
        with torch.no_grad():
            local_part(parameter).copy_(stored[name])
    expected = tiny_llama(tie_word_embeddings=tied)
    expected.model.layers[1].mlp.bfloat16()
    ids = torch.arange(12)[None]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(ids).logits, expected(ids).logits)


def test_weights_of_another_shape(alone, tmp_path):
    checkpoint = FolderCheckpoint(save_tiny(tmp_path / "source"))
    checkpoint.config.intermediate_size = 100
    with pytest.raises(SourceError, match=r"mlp\.gate_proj\.weight has shape"):
        sharded(checkpoint)
