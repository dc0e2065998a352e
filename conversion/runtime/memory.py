"""Memory of freed tensors: given back to the system, or kept."""

import ctypes
import sys
from typing import Any

# From glibc's malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
# Tensors of at least this size get pages of their own, which return to the system. The matrices of
# a window's attention are smaller: new pages for each of them would take a quarter of a
# conversion's processor time.
THRESHOLD_BYTES = 5 << 20
# Free memory that stays at the end of the heap; glibc's default once the other threshold is set is
# 128 KiB.
KEPT_BYTES = 8 << 20
KEEP_ALL = 2**31 - 1


def return_freed_memory() -> None:
    """Return the memory of every freed tensor of 5 MiB or more to the system.

    By default glibc raises its threshold up to 32 MiB. Smaller tensors then stay in a heap whose
    holes rarely fit those of the next layer, so that the process grows with the number of layers.
    The setting holds for the whole process; without glibc nothing happens.
    """
    _set_thresholds(THRESHOLD_BYTES, KEPT_BYTES)


def keep_freed_memory() -> None:
    """Keep freed memory in the process, for work that needs it again and again.

    Every step of a training, and every window of a conversion, frees and allocates its activations;
    new pages would take a third of its time. The setting holds for the whole process; without glibc
    nothing happens.
    """
    _set_thresholds(KEEP_ALL, KEEP_ALL)


def trim_memory() -> None:
    """Give back to the system what is free now, holes between tensors included.

    After ``keep_freed_memory``, once for every layer, whose tensors rarely fit into the last one's
    holes: without it a process would grow with the number of layers. Without glibc nothing happens.
    """
    trim = _glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _glibc(name: str) -> Any:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


def _set_thresholds(mapped: int, kept: int) -> None:
    mallopt = _glibc("mallopt")
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, mapped)
        mallopt(M_TRIM_THRESHOLD, kept)
