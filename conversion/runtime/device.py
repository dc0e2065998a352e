"""Devices that this machine can compute on."""

import torch

from conversion.errors import UsageError, first_line


def usable_device(name: str) -> str:
    """The device that ``--device`` names.

    Raises:
        UsageError: not usable here.
    """
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = first_line(error)
        raise UsageError(f"--device {name}: not usable here ({reason}); try cpu") from error
    return name
