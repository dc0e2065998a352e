"""A source checkpoint as the converter reads it, whatever its file format."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from conversion.errors import SourceError, first_line
from conversion.families import FAMILIES, Family, family_of
from conversion.source.kinds import check_convertible
from conversion.source.tensor_info import ALL_ROWS, TensorInfo
from vllm_mha2mla.config import source_head_dim

CPU = torch.device("cpu")
# An embedding table passes through memory in pieces of at most this size, as stored.
PIECE_BYTES = 16 << 20


# What transformers raises for a config that describes no model.
CONFIG_ERRORS = (
    *(ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError),
    *(RuntimeError, OSError, ImportError, StrictDataclassError),
)


def with_head_dim(config: Any) -> Any:
    """A config that has ``head_dim``, as transformers takes it where it is not given."""
    heads = getattr(config, "num_attention_heads", None)
    if getattr(config, "head_dim", None) is None and heads:
        config.head_dim = source_head_dim(config)
    return config


# What transformers knows of a config's class, and reads from the config.
OF_THE_CLASS = {"attribute_map", "sub_configs", "base_config_key", "has_no_defaults_at_init"}


def check_keys(config: Any) -> None:
    """Refuse a config.json whose keys would stand in the place of a config's methods.

    Raises:
        ValueError: with the key.
    """
    for key in vars(config):
        if key in OF_THE_CLASS or callable(getattr(type(config), key, None)):
            raise ValueError(f"{key} is no key of a config")


class SourceCheckpoint(ABC):
    """A decoder checkpoint, read one tensor at a time.

    Attributes:
        name: how the user named it.
        config: its transformers config.
        tensors: every tensor under its transformers name.
    """

    name: str
    config: Any
    tensors: dict[str, TensorInfo]

    @abstractmethod
    def read(self, name: str, rows: slice = ALL_ROWS) -> Tensor:
        """One tensor, or some of its rows, on the CPU, in the checkpoint's dtype.

        Its memory is its own: nothing stays resident once it is dropped.
        """

    @abstractmethod
    def fingerprint(self) -> str:
        """A hash that changes when a matrix of the checkpoint does; cheap to compute."""

    @abstractmethod
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The checkpoint's tokenizer."""

    @abstractmethod
    def check_assets(self) -> None:
        """Refuse, before any work, files that :meth:`write_assets` would not carry over.

        Raises:
            SourceError: there are such files.
        """

    @abstractmethod
    def write_assets(self, folder: Path) -> None:
        """Carry over tokenizer, chat template and generation config."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the stored attention weights."""
        return self.attention(0).dtype

    def attention(self, index: int) -> TensorInfo:
        """The first weight matrix of a layer's attention; the others are taken to be like it."""
        prefix = self.family.attention_prefix(index)
        return next(
            info
            for name, info in self.tensors.items()
            if name.startswith(prefix) and len(info.shape) == 2
        )

    def window(self, wanted: int) -> int:
        """The window to use: ``wanted`` tokens, or as many as the model takes at once."""
        return min(wanted, int(getattr(self.config, "max_position_embeddings", wanted)))

    @cached_property
    def family(self) -> Family:
        """The registered family.

        Raises:
            SourceError: as for :func:`check_convertible`.
        """
        check_convertible(self.config, self.name)
        return FAMILIES[self.config.model_type]

    def tensor(self, name: str, rows: slice = ALL_ROWS, device: torch.device = CPU) -> Tensor:
        """One tensor, or some of its rows, refused if it is missing or not finite."""
        if name not in self.tensors:
            raise SourceError(f"{self.name}: tensor {name} is missing; download the model again")
        tensor = self.read(name, rows).to(device)
        # NaN is its own smallest and largest value. Unlike isfinite, this takes no more memory. A
        # layer without rotary components has frequencies of no elements.
        extremes = tensor.aminmax() if tensor.numel() else ()
        if not all(bool(torch.isfinite(extreme)) for extreme in extremes):
            raise SourceError(
                f"{self.name}: {name} in {self.tensors[name].shard} holds NaN or infinite values; "
                "download the model again"
            )
        return tensor

    def pieces(self, name: str, device: torch.device = CPU) -> Iterator[Tensor]:
        """A tensor in consecutive blocks of rows, each of at most ``PIECE_BYTES``, or one row."""
        info = self.tensors[name]
        row_bytes = math.prod(info.shape[1:]) * info.dtype.itemsize
        step = max(1, PIECE_BYTES // row_bytes)
        for start in range(0, info.shape[0], step):
            yield self.tensor(name, slice(start, start + step), device)

    def of_model(
        self, name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device = CPU
    ) -> Tensor:
        """One tensor of the family's transformers model, put together from what is stored.

        Args:
            name: in the model.
            shape: in the model.
            dtype: of the result.
            device: of the result.

        Raises:
            SourceError: it is missing, not finite, or of another shape.
        """
        # Of a converted checkpoint too, which is no source to convert.
        parts = family_of(self.config).stored_parts(name, shape)
        whole = None
        for stored, stored_shape, place in parts:
            tensor = self.tensor(stored, device=device)
            if tensor.shape != stored_shape:
                raise SourceError(
                    f"{self.name}: {stored} has shape {list(tensor.shape)}, config.json promises "
                    f"{list(stored_shape)}; the two do not belong together"
                )
            if not place:
                return tensor.to(dtype)
            if whole is None:
                whole = torch.empty(shape, dtype=dtype, device=device)
            whole[place] = tensor.to(dtype)
        assert whole is not None
        return whole

    def layer(
        self, index: int, dtype: torch.dtype, device: torch.device = CPU, config: Any = None
    ) -> Any:
        """One decoder layer of the family's model, with its weights.

        Args:
            index: which one.
            dtype: of the weights.
            device: of the weights.
            config: to make it from; ``None``: the checkpoint's own.

        Raises:
            SourceError: a tensor is missing, not finite, or of another shape.
        """
        prefix = self.family.layer_prefix(index)
        with torch.device("meta"):
            layer = self.family.decoder_layer(config or self.config, index)
        state = {
            name: self.of_model(prefix + name, tuple(tensor.shape), dtype, device)
            for name, tensor in layer.state_dict().items()
        }
        layer.load_state_dict(state, assign=True)
        return layer

    def check_tensors(self) -> None:
        """Compare names and shapes with what the config promises, before any work.

        Raises:
            SourceError: a tensor is missing, unexpected, or of another shape.
        """
        # A model of as many layers as a damaged config says could take hours to build.
        if self.config.num_hidden_layers > len(self.tensors):
            raise SourceError(
                f"{self.name}: {len(self.tensors)} tensors for {self.config.num_hidden_layers} "
                "layers; the config and the weights do not belong together"
            )
        try:
            with torch.device("meta"):
                model = self.family.causal_lm(self.config)
        except CONFIG_ERRORS as error:
            raise SourceError(
                f"{self.name}: its config describes no model ({first_line(error)}); download the "
                "model again"
            ) from error
        head = self.family.head
        expected = {
            stored: shape
            for name, t in model.state_dict().items()
            for stored, shape, _ in self.family.stored_parts(name, tuple(t.shape))
        }
        missing = [n for n in expected if n not in self.tensors and n != head]
        if head not in self.tensors and not self.config.tie_word_embeddings:
            missing.append(head)
        unexpected = [n for n in self.tensors if n not in expected]
        if unexpected:
            raise SourceError(
                f"{self.name}: {len(unexpected)} unexpected tensors, the first is "
                f"{unexpected[0]}; convert from the plain model, neither quantised nor with an "
                "adapter that is not merged"
            )
        if missing:
            raise SourceError(
                f"{self.name}: {len(missing)} tensors are missing, the first is {missing[0]}; "
                "download the model again"
            )
        for name, info in self.tensors.items():
            if info.shape != expected[name]:
                raise SourceError(
                    f"{self.name}: {name} has shape {list(info.shape)}, config.json promises "
                    f"{list(expected[name])}; the two do not belong together"
                )
            if not info.dtype.is_floating_point or info.dtype.itemsize < 2:
                raise SourceError(
                    f"{self.name}: {name} is stored as {info.dtype}; convert from the "
                    "unquantised model"
                )
