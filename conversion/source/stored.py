"""The tensors of a folder's safetensors files as they are stored."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from conversion.errors import SourceError, first_line
from conversion.source.tensor_info import ALL_ROWS, IGNORED_SUFFIXES, TensorInfo

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
    "F8_E8M0": torch.float8_e8m0fnu,
}


class StoredTensors:
    """The tensors of safetensors files, read one at a time.

    Args:
        folder: of the files.
        files: their names.
        promised: tensor -> file, of the index.
        name: how the user named the folder.

    Attributes:
        infos: every tensor by its stored name.

    Raises:
        SourceError: a file is missing, unreadable, or lacks a tensor; or two files hold different
            tensors of one name.
    """

    def __init__(self, folder: Path, files: list[str], promised: dict[str, str], name: str) -> None:
        self.folder = folder
        self.name = name
        self.infos: dict[str, TensorInfo] = {}
        for file in files:
            for key, info in self._list(file).items():
                if key in self.infos and not self._same(key, info):
                    raise SourceError(
                        f"{name}: {self.infos[key].shard} and {file} hold different tensors "
                        f"{key}; download the model again"
                    )
                self.infos.setdefault(key, info)
        for key, file in promised.items():
            if key not in self.infos and not key.endswith(IGNORED_SUFFIXES):
                raise SourceError(
                    f"{name}: the index promises {key} in {file}, which does not hold it; "
                    "download the model again"
                )

    def read(self, key: str, rows: slice = ALL_ROWS) -> Tensor:
        """One tensor, or some of its rows.

        The file is mapped anew for every tensor: a mapping that stayed would keep all that was ever
        read of it resident.
        """
        return self._read(self.infos[key].shard, key, rows)

    def _read(self, file: str, key: str, rows: slice = ALL_ROWS) -> Tensor:
        opened = self._open(file)
        tensor: Tensor = opened.get_tensor(key) if rows == ALL_ROWS else opened.get_slice(key)[rows]
        return tensor

    def _same(self, key: str, other: TensorInfo) -> bool:
        one = self.infos[key]
        if (one.shape, one.dtype) != (other.shape, other.dtype):
            return False
        first, second = self._read(one.shard, key), self._read(other.shard, key)
        # Bytes, because NaN is not itself and some dtypes cannot be compared.
        return torch.equal(first.flatten().view(torch.uint8), second.flatten().view(torch.uint8))

    def _open(self, file: str) -> Any:
        try:
            # Opening a pipe would wait for its other end.
            if (self.folder / file).is_file():
                return safe_open(self.folder / file, framework="pt")
        except (SafetensorError, OSError, MemoryError) as error:
            raise SourceError(
                f"{self.name}: shard {file} is truncated or not safetensors "
                f"({first_line(error)}); download the model again"
            ) from error
        raise SourceError(f"{self.name}: shard {file} is missing; download the model again")

    def _list(self, file: str) -> dict[str, TensorInfo]:
        opened = self._open(file)
        found = {}
        for key in opened.keys():  # noqa: SIM118, not a dict
            if key.endswith(IGNORED_SUFFIXES):
                continue
            part = opened.get_slice(key)
            dtype = DTYPES.get(part.get_dtype())
            if dtype is None:
                raise SourceError(
                    f"{self.name}: {key} in {file} is stored as {part.get_dtype()}; convert "
                    "from the unquantised model"
                )
            found[key] = TensorInfo(tuple(part.get_shape()), dtype, file)
        return found
