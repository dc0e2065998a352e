"""Devices that this machine can compute on, and the room that they have."""

import torch

from conversion.errors import UsageError, first_line

# Part of a GPU's memory that nothing is kept in: layers and their intermediate results need it.
FOR_WORK = 0.25


def usable_device(name: str) -> str:
    """Make sure that the device that ``--device`` names can be used here.

    Raises:
        UsageError: it cannot.
    """
    try:
        # Read back, because meta tensors have no values.
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        # Sentences after the first are for PyTorch's developers.
        reason = first_line(error).split(". ")[0]
        raise UsageError(f"--device {name}: not usable here ({reason}); try cpu") from error
    return name


def place_to_keep(nbytes: int, device: torch.device) -> torch.device:
    """Where to keep tensors for as long as a command runs: the device if it has room, or the CPU.

    Args:
        nbytes: of all of them together.
        device: where they are computed with.
    """
    fits = device.type != "cpu" and nbytes <= _room(device)
    return device if fits else torch.device("cpu")


def _room(device: torch.device) -> float:
    """Bytes that are free on a GPU, beside the part that is for work; 0 where it does not say."""
    if device.type != "cuda":
        return 0
    free, total = torch.cuda.mem_get_info(device)
    # What PyTorch holds and does not use is free too.
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free + unused - FOR_WORK * total
