"""Names of the dtypes that weights can be written in."""

import torch

from conversion.errors import RecipeError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def dtype_named(name: str | None) -> torch.dtype | None:
    """What ``--dtype`` names.

    Raises:
        RecipeError: no such dtype.
    """
    if name is None:
        return None
    if name not in DTYPES:
        raise RecipeError(f"--dtype {name}: choose one of {', '.join(DTYPES)}")
    return DTYPES[name]
