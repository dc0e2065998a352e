"""A model cut over all devices: FSDP 2, read from its files layer by layer."""

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from conversion.errors import SourceError
from conversion.families import family_of
from conversion.healing.launch import processes
from conversion.source import SourceCheckpoint

# For accelerate, which finds the models cut already and saves and restores states. Every process
# writes its own part.
FSDP_CONFIG = {"version": 2, "auto_wrap_policy": "NO_WRAP", "state_dict_type": "SHARDED_STATE_DICT"}


def shard(model: Any, checkpoint: SourceCheckpoint, rotary: nn.Module, device: torch.device) -> Any:
    """Fill a model with this process's part of its weights; no process ever holds the whole.

    A decoder layer is gathered when it is computed, the rest with the first of them. Each tensor
    is cut, gathered and reduced in its own dtype, where accelerate would round all of a layer, the
    rotary frequencies too: products in bfloat16 are autocast's, as without shards.

    Args:
        model: on the meta device, each parameter in the dtype it is to have.
        checkpoint: its weights.
        rotary: its rotary embedding, whose buffers no checkpoint has.
        device: this process's.

    Raises:
        SourceError: the weights are not the model's.
    """
    # Hidden states that are compared are such views, and nothing writes into them.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
    mesh = init_device_mesh(device.type, (processes(),))
    family = family_of(model.config)
    family.set_rotary(model, rotary.to(device))
    for index, layer in enumerate(family.layers(model)):
        _fill(layer, family.layer_prefix(index), checkpoint, device)
        fully_shard(layer, mesh=mesh)
    _fill(model, "", checkpoint, device)
    model.tie_weights()
    fully_shard(model, mesh=mesh)
    return model


def _fill(
    module: nn.Module, prefix: str, checkpoint: SourceCheckpoint, device: torch.device
) -> None:
    weights = {}
    # A tied head comes up under its first name only.
    for name, parameter in module.named_parameters():
        if not parameter.is_meta:
            continue
        tensor = checkpoint.tensor(prefix + name)
        if tensor.shape != parameter.shape:
            raise SourceError(
                f"{checkpoint.name}: {prefix}{name} does not fit the config; download the model "
                "again"
            )
        weights[name] = tensor.to(device, parameter.dtype)
    module.load_state_dict(weights, strict=False, assign=True)


def part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, the same memory; all of one that is not cut."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor; of one that is cut, only together with all other processes."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
