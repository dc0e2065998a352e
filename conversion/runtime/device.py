"""Devices that this machine can compute on."""

import torch

from conversion.errors import UsageError, first_line


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
