"""A GGUF file's head, walked before the package gguf reads it.

That package believes every count: a damaged one makes it loop for hours, or take all memory. The
format and its rules are llama.cpp's (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
"""

import mmap
import struct
from pathlib import Path
from typing import Any

MAGIC, VERSIONS = b"GGUF", (2, 3)
# Bytes of a value by its type.
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
STRING, LIST = 8, 9
MOST_AXES = 4


def check_header(path: Path) -> None:
    """Walk over a file's metadata and tensors.

    Raises:
        ValueError: something lies beyond the end of the file, or is of no known type; says what.
        OSError: it cannot be read.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        _Walk(data).whole()


def check_offsets(tensors: list[Any], alignment: int) -> None:
    """Compare the places of a file's tensors with llama.cpp's: one behind the other, padded.

    Args:
        tensors: as the package gguf describes them.
        alignment: ``general.alignment``.

    Raises:
        ValueError: a tensor lies elsewhere, or has no elements.
    """
    expected = 0
    for tensor in tensors:
        if not tensor.n_elements:
            raise ValueError(f"tensor {tensor.name} is empty")
        offset = int(tensor.field.parts[5][0])
        if offset != expected:
            raise ValueError(f"tensor {tensor.name} is at {offset} and not at {expected}")
        expected += -(-int(tensor.n_bytes) // alignment) * alignment


class _Walk:
    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 0

    def whole(self) -> None:
        if self.skip(4) != MAGIC:
            raise ValueError("it does not begin with GGUF")
        version = self.number("<I")
        if version not in VERSIONS:
            raise ValueError(f"version {version}, or of the other byte order")
        tensors, values = self.number("<Q"), self.number("<Q")
        for _ in range(values):
            self.text()
            self.value(self.number("<I"))
        for _ in range(tensors):
            self.text()
            axes = self.number("<I")
            if axes > MOST_AXES:
                raise ValueError(f"a tensor of {axes} axes")
            size = 1
            for _ in range(axes):
                size *= self.number("<Q")
            if size > 2 * 8 * len(self.data):
                raise ValueError(f"a tensor of {size} elements in {len(self.data)} bytes")
            self.skip(4 + 8)

    def value(self, kind: int) -> None:
        if kind == STRING:
            self.text()
        elif kind != LIST:
            self.skip(self.size(kind))
        else:
            of, count = self.number("<I"), self.number("<Q")
            if of == STRING:
                for _ in range(count):
                    self.text()
            else:
                self.skip(self.size(of) * count)

    def size(self, kind: int) -> int:
        if kind not in SIZES:
            raise ValueError(f"a value of type {kind}")
        return SIZES[kind]

    def text(self) -> None:
        self.skip(self.number("<Q"))

    def number(self, kind: str) -> int:
        (value,) = struct.unpack(kind, self.skip(struct.calcsize(kind)))
        return int(value)

    def skip(self, count: int) -> bytes:
        """Move on by so many bytes; returns the first of them."""
        if self.at + count > len(self.data):
            raise ValueError("it ends within its head")
        first = self.data[self.at : self.at + min(count, 8)]
        self.at += count
        return first
