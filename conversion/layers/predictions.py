"""From the source's last layer to its logits: the final norm and the output projection."""

from collections.abc import Iterator
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor

from conversion.runtime.device import place_to_keep
from conversion.source import SourceCheckpoint


class OutputProjection:
    """The map from normed states to logits, in blocks of rows on a device  # each [rows, hidden]

    It can be passed by more than once. Where the device has room, the blocks stay there.
    """

    def __init__(self, source: SourceCheckpoint, device: torch.device) -> None:
        tied = source.config.tie_word_embeddings
        name = source.family.embedding if tied else source.family.head
        info = source.tensors[name]
        self._pieces = partial(source.pieces, name, device)
        self._factor = source.family.logits_factor(source.config)
        self._kept: list[Tensor] | None = None
        if place_to_keep(prod(info.shape) * info.dtype.itemsize, device).type != "cpu":
            self._kept = list(self._pieces())

    def __iter__(self) -> Iterator[Tensor]:
        pieces = self._pieces() if self._kept is None else iter(self._kept)
        return pieces if self._factor == 1 else (rows * self._factor for rows in pieces)


def final_norm(source: SourceCheckpoint, device: torch.device) -> Any:
    """The norm between the last layer and the output projection, float32, on the device."""
    with torch.device("meta"):
        norm = source.family.norm(source.family.causal_lm(source.config))
    prefix = source.family.names.norm
    weights = {name: source.tensor(f"{prefix}.{name}").float() for name in norm.state_dict()}
    norm.load_state_dict(weights, assign=True)
    return norm.to(device)
