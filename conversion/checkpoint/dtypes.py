"""Names of the dtypes that weights can be written in, and the one they get by default."""

import logging

import torch

from conversion.errors import RecipeError
from conversion.source import SourceCheckpoint

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def dtype_named(name: str | None) -> torch.dtype | None:
    """Look up the value of ``--dtype``; ``None`` stays ``None``.

    Raises:
        RecipeError: no such dtype.
    """
    if name is None:
        return None
    if name not in DTYPES:
        raise RecipeError(f"--dtype {name}: choose one of {', '.join(DTYPES)}")
    return DTYPES[name]


def written_dtype(source: SourceCheckpoint, requested: torch.dtype | None) -> torch.dtype:
    """Choose the dtype of the written weights, and log it where it is not the source's.

    A checkpoint's dtype is the one it is served in. Engines serve in 16 bits: they round a float32
    checkpoint at every start, or refuse the memory it takes.

    Args:
        source: the original.
        requested: the user's choice; ``None`` gives the source's dtype if that has 16 bits, else
            bfloat16.
    """
    if requested is not None:
        return requested
    if source.dtype in (torch.bfloat16, torch.float16):
        return source.dtype
    logger.info(
        "weights are written in bfloat16, which they are served in; "
        "to keep the source's %s, pass --dtype %s",
        *(str(source.dtype).removeprefix("torch."), "float32"),
    )
    return torch.bfloat16
