"""Streaming safetensors: tensors are written as they come, so a shard never has to fit in memory.

The format is eight bytes of header length, a JSON header, and the tensors' bytes
(https://github.com/huggingface/safetensors#format). The header comes first but is known last, so
room for it is reserved and padded with spaces, which the format allows.
"""

import json
import os
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

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
        self._header_bytes = -(-reserved // ALIGNMENT) * ALIGNMENT
        self._file: BinaryIO = path.open("wb")
        self._file.seek(8 + self._header_bytes)
        self._entries: dict[str, dict[str, object]] = {}
        self._end = 0

    def write(self, name: str, tensor: Tensor) -> None:
        """Append one tensor, in its own dtype."""
        if name in self._entries:
            raise ValueError(f"tensor {name} was written twice")
        tensor = tensor.detach().cpu().contiguous()
        data = tensor.flatten().view(torch.uint8).numpy()
        self._file.write(data.data)
        self._entries[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [self._end, self._end + data.nbytes],
        }
        self._end += data.nbytes

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
