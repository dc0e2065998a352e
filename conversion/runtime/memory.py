"""Giving memory back to the system when a tensor is freed."""

import ctypes
import sys

# From glibc's malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
# Tensors from this size on come from the kernel and return to it: not the matrices of a window's
# attention, or every one of them would be new pages: a quarter of a conversion's processor time.
THRESHOLD_BYTES = 5 << 20
# Free memory that stays at the end of the heap. Without it, 128 KiB, once the other is set.
KEPT_BYTES = 8 << 20
KEEP_ALL = 2**31 - 1


def return_freed_memory() -> None:
    """Let every tensor of 5 MiB or more leave the process when it is freed.

    glibc raises its threshold for this to 32 MiB as it goes; what is smaller stays in a heap
    whose holes rarely fit the next layer's tensors, so a process grows with the number of layers.
    It holds for the whole process; without glibc nothing happens.
    """
    _set_thresholds(THRESHOLD_BYTES, KEPT_BYTES)


def keep_freed_memory() -> None:
    """Let the process keep what it frees, for work that needs the same memory again and again.

    Every step of a training frees and allocates all its activations; new pages would take a third
    of its time. It holds for the whole process, from now on; without glibc nothing happens.
    """
    _set_thresholds(KEEP_ALL, KEEP_ALL)


def _set_thresholds(mapped: int, kept: int) -> None:
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, mapped)
        mallopt(M_TRIM_THRESHOLD, kept)
