"""GGUF files by their bytes, without the package that the product reads them with.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
STRING, ARRAY = 8, 9
FLOAT32, FLOAT16 = 0, 1


@dataclass
class Layout:
    """A file's content.

    Attributes:
        values: metadata.
        tensors: float32, in the order of numpy's axes.
        numbers: place and bytes of every count, length, type, size and offset.
    """

    values: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, np.ndarray] = field(default_factory=dict)
    numbers: list[tuple[int, int]] = field(default_factory=list)


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0
        self.layout = Layout()

    def scalar(self, code: str) -> Any:
        (value,) = struct.unpack_from(f"<{code}", self.data, self.at)
        self.at += struct.calcsize(code)
        return value

    def number(self, code: str) -> int:
        self.layout.numbers.append((self.at, struct.calcsize(code)))
        value: int = self.scalar(code)
        return value

    def text(self) -> str:
        size = self.number("Q")
        if self.at + size > len(self.data):
            raise ValueError("text beyond the end")
        value = self.data[self.at : self.at + size].decode("utf-8")
        self.at += size
        return value

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.text()
        if kind == ARRAY:
            of, count = self.number("I"), self.number("Q")
            if count > len(self.data):
                raise ValueError("list beyond the end")
            return [self.value(of) for _ in range(count)]
        return self.scalar(SCALARS[kind])


def parse(path: Path) -> Layout:
    """Read a file strictly.

    Raises:
        ValueError, KeyError, struct.error, UnicodeDecodeError: it is not one.
    """
    reader = _Reader(path.read_bytes())
    layout = reader.layout
    if reader.data[:4] != b"GGUF":
        raise ValueError("no GGUF")
    reader.at = 4
    if reader.number("I") not in (2, 3):
        raise ValueError("version")
    tensors, values = reader.number("Q"), reader.number("Q")
    for _ in range(values):
        key = reader.text()
        if key in layout.values:
            raise ValueError(f"{key} is there twice")
        layout.values[key] = reader.value(reader.number("I"))
    infos = []
    for _ in range(tensors):
        name = reader.text()
        shape = [reader.number("Q") for _ in range(reader.number("I"))]
        infos.append((name, shape[::-1], reader.number("I"), reader.number("Q")))
    alignment = layout.values.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise ValueError(f"alignment {alignment}")
    start = -(-reader.at // alignment) * alignment
    for name, shape, kind, offset in infos:
        dtype = {FLOAT32: np.dtype("<f4"), FLOAT16: np.dtype("<f2")}[kind]
        count = math.prod(shape)
        if start + offset + count * dtype.itemsize > len(reader.data) or name in layout.tensors:
            raise ValueError(f"{name} is there twice, or lies beyond the end")
        stored = np.frombuffer(reader.data, dtype, count, start + offset)
        layout.tensors[name] = stored.astype(np.float32).reshape(shape)
    return layout
