"""Hugging Face folders with safetensors, single or sharded."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from conversion.errors import SourceError, first_line
from conversion.source.checkpoint import (
    ALL_ROWS,
    IGNORED_SUFFIXES,
    SourceCheckpoint,
    TensorInfo,
    with_head_dim,
)
from conversion.source.kinds import check_has_config, no_safetensors

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# Replaced by the converter's own, or weights in formats it does not write.
NOT_CARRIED_OVER = {"config.json", "README.md", INDEX}
WEIGHT_SUFFIXES = {".safetensors", ".bin", ".pth", ".pt", ".gguf", ".h5", ".msgpack", ".onnx"}
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
# How much of each shard's head and tail goes into the fingerprint.
FINGERPRINT_BYTES = 1 << 20

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


class FolderCheckpoint(SourceCheckpoint):
    """A folder with ``config.json`` and safetensors.

    Raises:
        SourceError: the config or a shard is missing or unreadable.
    """

    def __init__(self, folder: Path, name: str | None = None) -> None:
        self.folder = folder
        self.name = name or str(folder)
        self.config = read_config(folder, self.name)
        self.tensors = {}
        for shard in _shard_names(folder, self.name):
            self.tensors.update(self._list_shard(shard))
        self._check_index()

    def _open(self, shard: str) -> Any:
        try:
            return safe_open(self.folder / shard, framework="pt")
        except FileNotFoundError as error:
            raise SourceError(
                f"{self.name}: shard {shard} is missing; download the model again"
            ) from error
        except (SafetensorError, OSError) as error:
            raise SourceError(
                f"{self.name}: shard {shard} is truncated or not safetensors ({error}); "
                "download the model again"
            ) from error

    def _list_shard(self, shard: str) -> dict[str, TensorInfo]:
        file = self._open(shard)
        found = {}
        for key in file.keys():  # noqa: SIM118, not a dict
            if key.endswith(IGNORED_SUFFIXES):
                continue
            part = file.get_slice(key)
            dtype = DTYPES.get(part.get_dtype())
            if dtype is None:
                raise SourceError(
                    f"{self.name}: {key} in {shard} is stored as {part.get_dtype()}; convert "
                    "from the unquantised model"
                )
            found[key] = TensorInfo(tuple(part.get_shape()), dtype, shard)
        return found

    def _check_index(self) -> None:
        if not (self.folder / INDEX).exists():
            return
        promised = json.loads((self.folder / INDEX).read_text("utf-8"))["weight_map"]
        for key, shard in promised.items():
            if key not in self.tensors and not key.endswith(IGNORED_SUFFIXES):
                raise SourceError(
                    f"{self.name}: {INDEX} promises {key} in {shard}, which does not hold it; "
                    "download the model again"
                )

    def read(self, name: str, rows: slice = ALL_ROWS) -> Tensor:
        """One tensor, or some of its rows, from its shard.

        The shard is mapped anew for every tensor: a mapping that stayed would keep all that was
        ever read of it resident.
        """
        shard = self._open(self.tensors[name].shard)
        tensor: Tensor = shard.get_tensor(name) if rows == ALL_ROWS else shard.get_slice(name)[rows]
        return tensor

    def fingerprint(self) -> str:
        """SHA-256 over config, shard sizes, and the head and tail of every shard."""
        digest = hashlib.sha256((self.folder / "config.json").read_bytes())
        for shard in sorted({info.shard for info in self.tensors.values()}):
            path = self.folder / shard
            size = path.stat().st_size
            digest.update(f"{shard}:{size}".encode())
            with path.open("rb") as file:
                digest.update(file.read(FINGERPRINT_BYTES))
                file.seek(max(0, size - FINGERPRINT_BYTES))
                digest.update(file.read())
        return digest.hexdigest()

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The folder's tokenizer."""
        try:
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(self.folder)
        except (OSError, ValueError) as error:
            found = any((self.folder / file).is_file() for file in TOKENIZER_FILES)
            trouble = f"no usable tokenizer ({first_line(error)})" if found else "no tokenizer"
            raise SourceError(
                f"{self.name}: {trouble}; copy tokenizer.json and tokenizer_config.json of the "
                f"original model into {self.folder}"
            ) from error
        return tokenizer

    def write_assets(self, folder: Path) -> None:
        """Copy every file but weights, config and README, byte for byte."""
        for path in sorted(self.folder.iterdir()):
            if path.name in NOT_CARRIED_OVER or path.name.startswith("."):
                continue
            if path.is_file() and path.suffix not in WEIGHT_SUFFIXES:
                shutil.copyfile(path, folder / path.name)


def read_config(folder: Path, name: str) -> Any:
    """The config of a model folder.

    Raises:
        SourceError: there is none, or transformers cannot read it.
    """
    check_has_config(folder, name)
    try:
        return with_head_dim(AutoConfig.from_pretrained(folder))
    except (ValueError, OSError, KeyError) as error:
        raise SourceError(
            f"{name}: config.json cannot be read ({first_line(error)}); give a decoder model "
            "that this transformers release knows"
        ) from error


def _shard_names(folder: Path, name: str) -> list[str]:
    if (folder / INDEX).is_file():
        try:
            weight_map = json.loads((folder / INDEX).read_text("utf-8"))["weight_map"]
            shards = sorted(set(weight_map.values()))
            # Outputs have shards of the same names: a path would be written wherever it leads.
            if any(Path(shard).name != shard for shard in shards):
                raise ValueError("a shard's name is a path")
            return shards
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise SourceError(
                f"{name}: {INDEX} is not a safetensors index; download the model again"
            ) from error
    if (folder / SINGLE).is_file():
        return [SINGLE]
    raise no_safetensors(folder, name, f"{SINGLE} nor {INDEX}")
