"""The calibration text's activations: on the device, in memory, or in a file."""

import mmap
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from conversion.errors import OffloadError
from conversion.runtime.device import place_to_keep

ITEM_BYTES = torch.float32.itemsize
CPU = torch.device("cpu")


class Activations:
    """Float32 activations of every calibration window; read and written a few windows at a time.

    Args:
        windows: how many windows.
        tokens: tokens per window.
        width: numbers per token.
        offload: folder for a file that holds them, which the kernel can take out of memory;
            ``None`` for memory. The file has no name, so nothing is left of it however the process
            ends.
        device: that computes with them; without ``offload`` they stay there if they fit.

    Raises:
        OffloadError: no such folder, not writable, or too little room.
    """

    def __init__(
        self,
        windows: int,
        tokens: int,
        width: int,
        offload: Path | None = None,
        device: torch.device = CPU,
    ) -> None:
        self._window_bytes = tokens * width * ITEM_BYTES
        self._device = device
        self._mapping: mmap.mmap | None = None
        if offload is None:
            place = place_to_keep(windows * self._window_bytes, device)
            self._values = torch.empty(windows, tokens, width, device=place)
        else:
            self._mapping = _mapped_file(windows * self._window_bytes, offload)
            flat = torch.frombuffer(self._mapping, dtype=torch.float32)
            self._values = flat.view(windows, tokens, width)

    @property
    def nbytes(self) -> int:
        """Size of all windows in bytes."""
        return self._values.nbytes

    @property
    def place(self) -> torch.device:
        """Where they are kept."""
        return self._values.device

    def copy(self, offload: Path | None = None) -> "Activations":
        """The same numbers in a place of their own.

        Raises:
            OffloadError: as for a new one.
        """
        windows, tokens, width = self._values.shape
        other = Activations(windows, tokens, width, offload, self._device)
        for window, values in enumerate(self):
            other[window] = values
        return other

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[window] for window in range(len(self)))

    def __getitem__(self, windows: int | slice) -> Tensor:
        """One window, or some, where they are kept, to be read only  # [..., tokens, width]"""
        if self._mapping is None:
            return self._values[windows]
        copy = self._values[windows].clone()
        self._leave_memory(windows)
        return copy

    def __setitem__(self, windows: int | slice, values: Tensor) -> None:
        """Replace one window, or some, from any device; any shape of as many numbers."""
        there = self._values[windows]
        there.copy_(values.view(there.shape))
        self._leave_memory(windows)

    def _leave_memory(self, windows: int | slice) -> None:
        """Unmap windows' pages: of a shared mapping they stay in the file, written or not."""
        if self._mapping is not None:
            if isinstance(windows, int):
                windows = slice(windows, windows + 1)
            first, end, _ = windows.indices(len(self))
            start = first * self._window_bytes // mmap.PAGESIZE * mmap.PAGESIZE
            self._mapping.madvise(mmap.MADV_DONTNEED, start, end * self._window_bytes - start)


def batches(windows: int, at_once: int) -> list[slice]:
    """Consecutive slices of ``windows`` windows, at most ``at_once`` in each."""
    return [slice(at, min(at + at_once, windows)) for at in range(0, windows, at_once)]


def _mapped_file(nbytes: int, folder: Path) -> mmap.mmap:
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            if hasattr(os, "posix_fallocate"):
                # A disk that fills up later would end the process with a bus error.
                os.posix_fallocate(file.fileno(), 0, nbytes)
            else:
                file.truncate(nbytes)
            return mmap.mmap(file.fileno(), nbytes)
    except OSError as error:
        raise OffloadError(
            f"--offload {folder}: no room for {nbytes / 2**20:,.0f} MiB of activations "
            f"({error.strerror}); give a writable folder with enough space"
        ) from error
