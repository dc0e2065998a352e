"""GGUF files: dequantised to float32 one tensor at a time, under transformers' names."""

import hashlib
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from conversion.errors import SourceError
from conversion.families import FAMILIES
from conversion.source.checkpoint import ALL_ROWS, SourceCheckpoint, TensorInfo, with_head_dim
from conversion.source.folder import FINGERPRINT_BYTES, SINGLE


class GgufCheckpoint(SourceCheckpoint):
    """A ``.gguf`` file of a Llama-architecture model.

    Raises:
        SourceError: unreadable, of another architecture, or with tensors that have no counterpart.
    """

    def __init__(self, path: Path, name: str | None = None) -> None:
        self.path = path
        self.name = name or str(path)
        try:
            self._reader = gguf.GGUFReader(path)
        except (ValueError, IndexError, OSError) as error:
            raise SourceError(
                f"{self.name}: truncated or not a GGUF file ({error}); download it again"
            ) from error
        field = self._reader.get_field("general.architecture")
        architecture = field.contents() if field else None
        names = [family.gguf for family in FAMILIES.values() if family.gguf is not None]
        known = {one.architecture: one for one in names}
        if architecture not in known:
            raise SourceError(
                f"{self.name}: GGUF architecture {architecture!r} is not supported; "
                "convert from the model's Hugging Face folder"
            )
        self._names = known[architecture]
        config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
        self.config = with_head_dim(config)
        self._stored = {self._rename(t.name): t for t in self._reader.tensors}
        self.tensors = {
            name: TensorInfo(tuple(int(n) for n in reversed(t.shape)), torch.float32, SINGLE)
            for name, t in self._stored.items()
        }
        # GGUF files leave the head out when it is the embedding.
        self.config.tie_word_embeddings = self.family.head not in self.tensors

    def _rename(self, name: str) -> str:
        module, _, kind = name.rpartition(".")
        if module in self._names.model:
            return f"{self._names.model[module]}.{kind}"
        parts = module.split(".")
        if len(parts) == 3 and parts[0] == "blk" and parts[2] in self._names.layer:
            prefix = self.family.layer_prefix(int(parts[1]))
            return f"{prefix}{self._names.layer[parts[2]]}.{kind}"
        raise SourceError(
            f"{self.name}: GGUF tensor {name} has no counterpart; convert from the model's "
            "Hugging Face folder"
        )

    def read(self, name: str, rows: slice = ALL_ROWS) -> Tensor:
        """One dequantised tensor, or some of its rows, as transformers orders them.

        The file is mapped anew for every tensor: the reader's own mapping would keep all that was
        ever read of it resident.
        """
        stored = self._stored[name]
        data = np.memmap(self.path, stored.data.dtype, "r", stored.data_offset, stored.data.shape)
        for module, heads in self._names.interleaved.items():
            if f".{module}." in name:
                paired = _dequantised(data, stored)
                return _pairs_to_halves(paired, getattr(self.config, heads))[rows]
        return _dequantised(data[rows], stored)

    def fingerprint(self) -> str:
        """SHA-256 over the file's size, head and tail."""
        size = self.path.stat().st_size
        digest = hashlib.sha256(str(size).encode())
        with self.path.open("rb") as file:
            digest.update(file.read(FINGERPRINT_BYTES))
            file.seek(max(0, size - FINGERPRINT_BYTES))
            digest.update(file.read())
        return digest.hexdigest()

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer inside the file."""
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            self.path.parent, gguf_file=self.path.name
        )
        return tokenizer

    def write_assets(self, folder: Path) -> None:
        """Write the file's tokenizer, chat template and end tokens as a folder's."""
        self.tokenizer().save_pretrained(folder)
        GenerationConfig(
            bos_token_id=self.config.bos_token_id,
            eos_token_id=self.config.eos_token_id,
            pad_token_id=self.config.pad_token_id,
        ).save_pretrained(folder)


def _dequantised(data: Any, stored: Any) -> Tensor:
    values: Any = gguf.quants.dequantize(data, stored.tensor_type)
    # What was stored as float32 is still the read-only file; the rest is a new array already.
    return torch.from_numpy(np.require(values, np.float32, "W"))


def _pairs_to_halves(weight: Tensor, heads: int) -> Tensor:
    """Undo llama.cpp's widths, where the two rows of a rotary pair are neighbours.

    Args:
        weight: rows ``(pair, re|im)`` within each head  # [heads * d, ...]
        heads: number of heads the rows belong to.

    Returns:
        rows ``(re|im, pair)`` within each head, as transformers has them  # [heads * d, ...]
    """
    paired = weight.view(heads, weight.shape[0] // heads // 2, 2, *weight.shape[1:])
    return paired.transpose(1, 2).reshape(weight.shape)
