"""Memory that runs out, on a device or in the process, as an error of ours."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from conversion.errors import DeviceMemoryError, first_line

# PyTorch has no error of its own for it on the CPU, and the libraries of GPUs have theirs.
SIGNS = ("can't allocate memory", "ALLOC_FAILED", "out of memory")


def is_out_of_memory(error: BaseException) -> bool:
    """True if an error says that no memory was left, on a device or in the process."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


@contextmanager
def memory_errors(way_out: str) -> Iterator[None]:
    """Turn out-of-memory errors of the block into ours.

    Args:
        way_out: what to do about it.

    Raises:
        DeviceMemoryError: memory ran out.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        # Sentences after the second are about the state of PyTorch's allocator.
        reason = ". ".join(first_line(error).split(". ")[:2])
        raise DeviceMemoryError(f"memory ran out ({reason}); {way_out}") from error
