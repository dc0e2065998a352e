"""Streaming safetensors: tensors are written as they come, so a shard never has to fit in memory.

The format is eight bytes of header length, a JSON header, and the tensors' bytes
(https://github.com/huggingface/safetensors#format). The header comes first but is known last, so
room for it is reserved and padded with spaces, which the format allows.
"""

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from conversion.errors import OutputError
from conversion.runtime.numbers import ceil_div

DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}
# Above the JSON of one entry: name, dtype, shape and offsets.
HEADER_BYTES_PER_TENSOR = 320
# The format wants the data aligned to this.
ALIGNMENT = 8


class ShardWriter:
    """One safetensors file, written tensor by tensor.

    Args:
        path: the file to create.
        max_tensors: upper bound on how many tensors it will hold.
    """

    def __init__(self, path: Path, max_tensors: int) -> None:
        reserved = 64 + max_tensors * HEADER_BYTES_PER_TENSOR
        self._header_bytes = ceil_div(reserved, ALIGNMENT) * ALIGNMENT
        self._file: BinaryIO = path.open("wb")
        self._file.seek(8 + self._header_bytes)
        self._entries: dict[str, dict[str, object]] = {}
        self._end = 0

    def write(self, name: str, tensor: Tensor) -> None:
        """Append one tensor, in its own dtype."""
        self.write_pieces(name, (tensor,), tuple(tensor.shape), tensor.dtype)

    def write_pieces(
        self, name: str, pieces: Iterable[Tensor], shape: tuple[int, ...], dtype: torch.dtype
    ) -> None:
        """Append one tensor that comes in consecutive blocks of its rows, converted to ``dtype``.

        Raises:
            OutputError: a finite number became infinite in ``dtype``.
            ValueError: the name was written before, or the blocks are not the whole tensor.
        """
        if name in self._entries:
            raise ValueError(f"tensor {name} was written twice")
        start = self._end
        for piece in pieces:
            block = piece.detach().to(device="cpu", dtype=dtype).contiguous()
            rounds = dtype == torch.float16 and piece.dtype != dtype
            if rounds and bool((block.isinf() & piece.cpu().isfinite()).any()):
                raise OutputError(
                    f"{name}: has numbers too large for float16; choose --dtype bfloat16 or float32"
                )
            self._file.write(block.flatten().view(torch.uint8).numpy().data)
            self._end += block.nbytes
        if self._end - start != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"tensor {name}: its pieces do not make up {list(shape)}")
        self._entries[name] = {
            "dtype": DTYPE_NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [start, self._end],
        }

    @property
    def bytes_written(self) -> int:
        """Bytes of tensors so far."""
        return self._end

    def close(self) -> None:
        """Write the header and make the file durable."""
        header = json.dumps({"__metadata__": {"format": "pt"}, **self._entries}).encode()
        if len(header) > self._header_bytes:
            raise ValueError("more tensors than room was reserved for")
        self._file.seek(0)
        self._file.write(self._header_bytes.to_bytes(8, "little"))
        self._file.write(header.ljust(self._header_bytes))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()

    def abandon(self) -> None:
        """Close the file as it is; its folder is about to go."""
        self._file.close()
