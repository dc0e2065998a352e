"""The calibration text's activations: in memory, or in a file the kernel can take out of it."""

import mmap
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from conversion.errors import OffloadError

ITEM_BYTES = torch.float32.itemsize


class Activations:
    """Float32 activations of every calibration window; read and written one window at a time.

    Args:
        windows: how many windows.
        tokens: tokens per window.
        width: numbers per token.
        offload: folder for the file that holds them; ``None`` for memory. The file has no name, so
            nothing is left of it however the process ends.

    Raises:
        OffloadError: no such folder, not writable, or too little room.
    """

    def __init__(self, windows: int, tokens: int, width: int, offload: Path | None = None) -> None:
        self._window_bytes = tokens * width * ITEM_BYTES
        self._mapping: mmap.mmap | None = None
        if offload is None:
            self._values = torch.empty(windows, tokens, width)
        else:
            self._mapping = _mapped_file(windows * self._window_bytes, offload)
            flat = torch.frombuffer(self._mapping, dtype=torch.float32)
            self._values = flat.view(windows, tokens, width)

    @property
    def nbytes(self) -> int:
        """Size of all windows in bytes."""
        return self._values.nbytes

    def copy(self, offload: Path | None = None) -> "Activations":
        """The same numbers in a place of their own.

        Raises:
            OffloadError: as for a new one.
        """
        windows, tokens, width = self._values.shape
        other = Activations(windows, tokens, width, offload)
        for window, values in enumerate(self):
            other[window] = values
        return other

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[window] for window in range(len(self)))

    def __getitem__(self, window: int) -> Tensor:
        """One window, on the CPU, not to be written into  # [tokens, width]"""
        if self._mapping is None:
            return self._values[window]
        copy = self._values[window].clone()
        self._leave_memory(window)
        return copy

    def __setitem__(self, window: int, values: Tensor) -> None:
        """Replace one window, from any device  # [tokens, width]"""
        self._values[window].copy_(values)
        self._leave_memory(window)

    def _leave_memory(self, window: int) -> None:
        """Unmap a window's pages: of a shared mapping they stay in the file, written or not."""
        if self._mapping is not None:
            start = window * self._window_bytes // mmap.PAGESIZE * mmap.PAGESIZE
            end = (window + 1) * self._window_bytes
            self._mapping.madvise(mmap.MADV_DONTNEED, start, end - start)


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
