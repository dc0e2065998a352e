"""A model sharded over all devices: FSDP 2, read from its files layer by layer."""

import warnings
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from conversion.families import family_of
from conversion.healing.launch import world_size
from conversion.source import SourceCheckpoint
from vllm_mha2mla.config import CONSTANTS

# For accelerate: the models are sharded already (NO_WRAP), and every process saves its own part.
FSDP_CONFIG = {"version": 2, "auto_wrap_policy": "NO_WRAP", "state_dict_type": "SHARDED_STATE_DICT"}


def shard(model: Any, checkpoint: SourceCheckpoint, rotary: nn.Module, device: torch.device) -> Any:
    """Load this process's part of a model's weights; no process ever holds the whole.

    Every decoder layer is a unit of its own, gathered while it is computed; the rest of the model
    is one more unit. Tensors are sharded, gathered and reduced in their own dtype. accelerate's
    own wrapping would convert a layer to one dtype, the rotary frequencies with it; here only
    autocast rounds products to bfloat16, as without shards.

    Args:
        model: on the meta device, each parameter in the dtype it is to have.
        checkpoint: its weights.
        rotary: its rotary embedding, whose buffers are in no checkpoint.
        device: this process's.

    Raises:
        SourceError: the weights do not fit the model.
    """
    # Hidden states that are compared are such views, and nothing writes into them.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
    mesh = init_device_mesh(device.type, (world_size(),))
    family = family_of(model.config)
    family.set_rotary(model, rotary.to(device))
    for index, layer in enumerate(family.layers(model)):
        _load_weights(layer, family.layer_prefix(index), checkpoint, device)
        fully_shard(layer, mesh=mesh)
    _load_weights(model, "", checkpoint, device)
    model.tie_weights()
    fully_shard(model, mesh=mesh)
    return model


def _load_weights(
    module: nn.Module, prefix: str, checkpoint: SourceCheckpoint, device: torch.device
) -> None:
    weights = {}
    constants = ((n, x) for n, x in module.named_buffers() if n.endswith(CONSTANTS))
    # named_parameters() lists a tied head under its first name only.
    for name, tensor in chain(module.named_parameters(), constants):
        if not tensor.is_meta:
            continue
        shape = tuple(tensor.shape)
        weights[name] = checkpoint.of_model(prefix + name, shape, tensor.dtype).to(device)
    module.load_state_dict(weights, strict=False, assign=True)


def local_part(tensor: Tensor) -> Tensor:
    """The part of a sharded tensor that this process holds, as a view; else the tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gathered(tensor: Tensor) -> Tensor:
    """The whole of a sharded tensor; else the tensor itself. All processes call it together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
