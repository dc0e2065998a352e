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
from conversion.source.checkpoint import ALL_ROWS, EMBEDDING, HEAD, SourceCheckpoint, TensorInfo
from conversion.source.folder import FINGERPRINT_BYTES, SINGLE

TOP_LEVEL = {
    "token_embd.weight": EMBEDDING,
    "output_norm.weight": "model.norm.weight",
    "output.weight": HEAD,
}
PER_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


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
        if architecture not in {family.gguf_architecture for family in FAMILIES.values()}:
            raise SourceError(
                f"{self.name}: GGUF architecture {architecture!r} is not supported; "
                "convert from the model's Hugging Face folder"
            )
        self.config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
        self._stored = {self._rename(t.name): t for t in self._reader.tensors}
        self.tensors = {
            name: TensorInfo(tuple(int(n) for n in reversed(t.shape)), torch.float32, SINGLE)
            for name, t in self._stored.items()
        }
        # Llama GGUF files leave the head out when it is the embedding.
        self.config.tie_word_embeddings = HEAD not in self.tensors

    def _rename(self, name: str) -> str:
        if name in TOP_LEVEL:
            return TOP_LEVEL[name]
        parts = name.split(".")
        if len(parts) == 4 and parts[0] == "blk" and parts[2] in PER_LAYER:
            return f"model.layers.{parts[1]}.{PER_LAYER[parts[2]]}.{parts[3]}"
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
        if ".q_proj." in name:
            return _pairs_to_halves(_dequantised(data, stored), self.config.num_attention_heads)[
                rows
            ]
        if ".k_proj." in name:
            return _pairs_to_halves(_dequantised(data, stored), self.config.num_key_value_heads)[
                rows
            ]
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
