"""The way ``accelerate launch`` started this process: alone, data-parallel, or sharded."""

import os

import torch
from accelerate.utils import DistributedType

from conversion.errors import UsageError
from conversion.runtime.device import usable_device

USE_FSDP = "ACCELERATE_USE_FSDP"
WITH_FSDP = "launch with --use_fsdp --fsdp_version 2, or with plain data parallelism (--multi_gpu)"
# A variable that accelerate launch sets, the value that is refused, and the way out.
REFUSED = (
    ("ACCELERATE_USE_DEEPSPEED", "true", f"DeepSpeed is not supported; {WITH_FSDP}"),
    ("ACCELERATE_USE_MEGATRON_LM", "true", f"Megatron-LM is not supported; {WITH_FSDP}"),
    (
        "ACCELERATE_USE_PARALLELISM_CONFIG",
        "true",
        f"tensor, context and hybrid parallelism are not supported; {WITH_FSDP}",
    ),
)
REFUSED_WITH_FSDP = (
    ("FSDP_VERSION", "1", "FSDP 1 is not supported; add --fsdp_version 2"),
    (
        "FSDP_OFFLOAD_PARAMS",
        "true",
        "--fsdp_offload_params is not supported; leave it out, and launch more processes if memory "
        "is short",
    ),
    (
        "FSDP_ACTIVATION_CHECKPOINTING",
        "true",
        "--fsdp_activation_checkpointing is not supported; set gradient_checkpointing in the "
        "recipe",
    ),
    (
        "FSDP_RESHARD_AFTER_FORWARD",
        "false",
        "--fsdp_reshard_after_forward false would leave the whole model on each device; leave it "
        "out",
    ),
)


def world_size() -> int:
    """Number of processes on all machines."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def local_world_size() -> int:
    """Number of processes that share this machine's memory."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))


def is_sharded() -> bool:
    """True if every process is to hold a part of the models instead of the whole."""
    return _is_set(USE_FSDP, "true")


def training_device(name: str | None) -> str:
    """The type of device to train on: ``cpu`` or ``cuda``.

    Args:
        name: the user's choice; ``None``: GPUs where there are any.

    Raises:
        UsageError: it cannot be used here, or is one of several GPUs.
    """
    if name is None:
        on_cpu = _is_set("ACCELERATE_USE_CPU", "true")
        return "cuda" if torch.cuda.is_available() and not on_cpu else "cpu"
    if name not in ("cpu", "cuda"):
        raise UsageError(
            f"--device {name}: choose cpu or cuda; CUDA_VISIBLE_DEVICES chooses among GPUs"
        )
    return usable_device(name)


def check_launch() -> None:
    """Refuse launches that healing does not support.

    Raises:
        UsageError: such a launch, with the options that work.
    """
    refused = (*REFUSED, *REFUSED_WITH_FSDP) if is_sharded() else REFUSED
    for name, value, reason in refused:
        # accelerate launch takes FSDP 1 where no version is given.
        if _is_set(name, value, "1" if name == "FSDP_VERSION" else ""):
            raise UsageError(f"accelerate launch: {reason}")
    if is_sharded() and world_size() < 2:
        raise UsageError(
            "accelerate launch: FSDP shards over several processes, and this is one; add "
            "--num_processes, or leave out --use_fsdp"
        )


def check_distributed_type(distributed_type: DistributedType) -> None:
    """Refuse ``--use_fsdp`` on CPUs, where accelerate silently ignores it.

    Args:
        distributed_type: accelerate's, before it looks at plugins.

    Raises:
        UsageError: accelerate would not shard.
    """
    if is_sharded() and distributed_type in (DistributedType.NO, DistributedType.MULTI_CPU):
        raise UsageError(
            "accelerate launch: FSDP needs GPUs, and none is usable here; leave out --use_fsdp"
        )


def _is_set(name: str, value: str, default: str = "") -> bool:
    return os.environ.get(name, default).lower() == value
