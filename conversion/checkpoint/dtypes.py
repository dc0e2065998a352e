"""The dtype that a checkpoint's weights are written in."""

import logging

import torch

from conversion.source import SourceCheckpoint

logger = logging.getLogger(__name__)


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
