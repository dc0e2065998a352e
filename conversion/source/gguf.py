"""GGUF files: dequantised to float32 one tensor at a time, under transformers' names."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from conversion.errors import SourceError
from conversion.families import FAMILIES, Family
from conversion.source.checkpoint import SourceCheckpoint, with_head_dim
from conversion.source.fingerprint import ends_and_pieces
from conversion.source.gguf_config import gguf_config
from conversion.source.gguf_metadata import check_metadata, with_usual_tokens
from conversion.source.gguf_parts import check_split, gguf_parts, read_gguf
from conversion.source.gguf_tokenizer import end_tokens, generation_config, gguf_tokenizer
from conversion.source.tensor_info import ALL_ROWS, TensorInfo
from conversion.source.weight_files import SINGLE

# Divides rotary frequencies; part of the config in transformers.
ROPE_FREQS = "rope_freqs.weight"


@dataclass(frozen=True)
class Stored:
    """A tensor's place in the files.

    Attributes:
        path: its file.
        tensor: as the reader describes it.
        expert: the one of all that the stored tensor holds; ``None`` where it holds one.
    """

    path: Path
    tensor: Any
    expert: int | None = None


class GgufCheckpoint(SourceCheckpoint):
    """A model in one ``.gguf`` file, or in several parts.

    Biases that the config has and the file lacks are zero, as for llama.cpp.

    Raises:
        SourceError: unreadable, incomplete, of an architecture that is not read, or with tensors or
            metadata that have no counterpart.
    """

    def __init__(self, path: Path, name: str | None = None) -> None:
        self.name = name or str(path)
        self.paths = gguf_parts(path, self.name)
        read = [read_gguf(part, self.name) for part in self.paths]
        check_metadata(read[0][0], self.name)
        self._metadata = with_usual_tokens(read[0][0])
        stored = [
            (part, tensor)
            for part, (_, tensors) in zip(self.paths, read, strict=True)
            for tensor in tensors
        ]
        check_split(self._metadata, self.paths, len(stored), self.name)
        self._family = _family(self._metadata, self.name)
        assert self._family.gguf is not None
        self._names = self._family.gguf
        self._stored: dict[str, Stored] = {}
        freqs = None
        for part, tensor in stored:
            if tensor.name == ROPE_FREQS:
                freqs = self._values(part, tensor)
                continue
            for own_name, place in self._places(part, tensor):
                if own_name in self._stored:
                    raise SourceError(
                        f"{self.name}: tensor {tensor.name} is there twice; download it again"
                    )
                self._stored[own_name] = place
        shapes = {name: _shape(place) for name, place in self._stored.items()}
        config = gguf_config(self._metadata, self._family, shapes, freqs, self.name)
        ends = end_tokens(self._metadata)
        if ends:
            config.eos_token_id = ends if len(ends) > 1 else ends[0]
        self.config = with_head_dim(config)
        self.tensors = {
            name: TensorInfo(shape, torch.float32, self._shard(self._stored[name].path))
            for name, shape in shapes.items()
        }
        for name, shape in self._absent_biases().items():
            self.tensors[name] = TensorInfo(shape, torch.float32, self._shard(self.paths[0]))

    def _shard(self, path: Path) -> str:
        """The file of a folder that takes the tensors of a part."""
        count = len(self.paths)
        at = self.paths.index(path) + 1
        return SINGLE if count == 1 else f"model-{at:05d}-of-{count:05d}.safetensors"

    def _places(self, part: Path, tensor: Any) -> list[tuple[str, Stored]]:
        """The transformers tensors that a stored tensor holds."""
        module, _, kind = tensor.name.rpartition(".")
        if module in self._names.model:
            return [(f"{self._names.model[module]}.{kind}", Stored(part, tensor))]
        parts = module.split(".")
        if len(parts) == 3 and parts[0] == "blk" and parts[1].isdecimal():
            prefix = self._family.layer_prefix(int(parts[1]))
            if parts[2] in self._names.layer:
                return [(f"{prefix}{self._names.layer[parts[2]]}.{kind}", Stored(part, tensor))]
            if parts[2] in self._names.experts:
                own = self._names.experts[parts[2]]
                return [
                    (f"{prefix}{own.format(expert)}.{kind}", Stored(part, tensor, expert))
                    for expert in range(int(tensor.shape[-1]))
                ]
        raise SourceError(
            f"{self.name}: GGUF tensor {tensor.name} has no counterpart; convert from the model's "
            "Hugging Face folder"
        )

    def _absent_biases(self) -> dict[str, tuple[int, ...]]:
        """Biases that the config promises and the file does not hold, with their shapes."""
        if not any(name.endswith(".bias") for name in self._stored):
            return {}
        with torch.device("meta"):
            expected = self.family.causal_lm(self.config).state_dict()
        return {
            name: tuple(tensor.shape)
            for name, tensor in expected.items()
            if name.endswith(".bias") and name not in self._stored
        }

    def read(self, name: str, rows: slice = ALL_ROWS) -> Tensor:
        """One dequantised tensor, or some of its rows, as transformers orders them.

        The file is mapped anew for every tensor: the reader's own mapping would keep all that was
        ever read of it resident.
        """
        place = self._stored.get(name)
        if place is None:
            return torch.zeros(self.tensors[name].shape)[rows]
        for module, heads in self._names.interleaved.items():
            if f".{module}." in name:
                paired = self._values(place.path, place.tensor)
                return _pairs_to_halves(paired, getattr(self.config, heads))[rows]
        values = self._values(place.path, place.tensor, place.expert, rows)
        if self._names.norm_offset and name.endswith("norm.weight"):
            values -= self._names.norm_offset
        return values

    def _values(
        self, path: Path, tensor: Any, expert: int | None = None, rows: slice = ALL_ROWS
    ) -> Tensor:
        data = np.memmap(path, tensor.data.dtype, "r", tensor.data_offset, tensor.data.shape)
        wanted = data[rows] if expert is None else data[expert][rows]
        try:
            values: Any = gguf.quants.dequantize(wanted, tensor.tensor_type)
        except NotImplementedError as error:
            raise SourceError(
                f"{self.name}: {tensor.name} is stored as {tensor.tensor_type.name}, which is not "
                "read; convert from the model's Hugging Face folder"
            ) from error
        # What was stored as float32 is still the read-only file; the rest is a new array already.
        return torch.from_numpy(np.require(values, np.float32, "W"))

    def fingerprint(self) -> str:
        """SHA-256 over every file's size and parts of it."""
        digest = hashlib.sha256()
        for path in self.paths:
            digest.update(str(path.stat().st_size).encode())
            digest.update(ends_and_pieces(path))
        return digest.hexdigest()

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer inside the file."""
        return gguf_tokenizer(self.paths[0], self._metadata, self.name)

    def check_assets(self) -> None:
        """Refuse nothing: what is carried over is in the file itself."""

    def write_assets(self, folder: Path) -> None:
        """Write the file's tokenizer, chat templates, end tokens and sampling as a folder's."""
        self.tokenizer().save_pretrained(folder)
        generation_config(self._metadata, self.name).save_pretrained(folder)


def _family(metadata: dict[str, Any], name: str) -> Family:
    """The family whose GGUF files have this architecture.

    Raises:
        SourceError: none has, or the file holds no whole model.
    """
    kind = metadata.get("general.type", "model")
    if kind != "model":
        raise SourceError(f"{name}: a GGUF file of type {kind!r}, not a whole model")
    architecture = metadata.get("general.architecture")
    mixture = bool(metadata.get(f"{architecture}.expert_count"))
    known = [f for f in FAMILIES.values() if f.gguf and f.gguf.architecture == architecture]
    for family in known:
        assert family.gguf is not None
        if len(known) == 1 or bool(family.gguf.experts) == mixture:
            return family
    raise SourceError(
        f"{name}: GGUF architecture {architecture!r} is not supported; "
        "convert from the model's Hugging Face folder"
    )


def _shape(place: Stored) -> tuple[int, ...]:
    shape = tuple(int(n) for n in reversed(place.tensor.shape))
    return shape if place.expert is None else shape[1:]


def _pairs_to_halves(weight: Tensor, heads: int) -> Tensor:
    """Undo llama.cpp's order, where the two rows of a rotary pair are neighbours.

    Args:
        weight: rows ``(pair, re|im)`` within each head  # [heads * d, ...]
        heads: number of heads the rows belong to.

    Returns:
        rows ``(re|im, pair)`` within each head, as transformers has them  # [heads * d, ...]
    """
    paired = weight.view(heads, weight.shape[0] // heads // 2, 2, *weight.shape[1:])
    return paired.transpose(1, 2).reshape(weight.shape)
