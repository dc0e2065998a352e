"""safetensors files by their bytes, without the package that the product reads them with."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """A file's header and its data."""
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def join(header: dict[str, Any] | str, data: bytes, size: int | None = None) -> bytes:
    """A file of a header, as JSON or as text, and data; ``size`` is what it says of the header."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode("utf-8", "replace")
    return (len(text) if size is None else size).to_bytes(8, "little") + text + data


def tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a file."""
    header, data = split(path.read_bytes())
    header.pop("__metadata__", None)
    return {name: _tensor(entry, data) for name, entry in header.items()}


def _tensor(entry: dict[str, Any], data: bytes) -> Tensor:
    start, end = entry["data_offsets"]
    if start == end:
        return torch.empty(entry["shape"], dtype=DTYPES[entry["dtype"]])
    values = torch.from_numpy(np.frombuffer(data[start:end], np.uint8).copy())
    return values.view(DTYPES[entry["dtype"]]).reshape(entry["shape"])
