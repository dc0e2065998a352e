"""Giving memory back to the system when a tensor is freed."""

import ctypes
import sys

# M_MMAP_THRESHOLD in glibc's malloc.h, and the size from which memory is asked of the kernel.
M_MMAP_THRESHOLD = -3
THRESHOLD_BYTES = 1 << 20


def return_freed_memory() -> None:
    """Let every tensor of a MiB or more leave the process when it is freed.

    glibc raises its threshold for this to 32 MiB as it goes; what is smaller stays in a heap
    whose holes rarely fit the next layer's tensors, so a process grows with the number of layers.
    It holds for the whole process; without glibc nothing happens.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, THRESHOLD_BYTES)
