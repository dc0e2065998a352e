"""Devices that this machine can compute on."""

import torch

from conversion.errors import RecipeError, first_line


def usable_device(name: str) -> str:
    """The device that ``--device`` names.

    Raises:
        RecipeError: not usable here.
    """
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = first_line(error)
        raise RecipeError(f"--device {name}: not usable here ({reason}); try cpu") from error
    return name
