"""The calibration text's hidden states on their way through the layers."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from conversion.calibration.activations import Activations
from conversion.source import SourceCheckpoint


@dataclass(frozen=True)
class RefitStreams:
    """The streams that a refit needs besides the original one.

    Attributes:
        converted: hidden states in the converted model  # [windows, tokens, hidden]
        heads: outputs of the current layer's converted heads  # [windows, tokens, heads * v]
        sinks: number of windows, the last ones, whose tokens each see only themselves.
    """

    converted: Activations
    heads: Activations
    sinks: int = 0


@dataclass(frozen=True)
class Streams:
    """Hidden states before a layer; their windows are replaced in place, layer by layer.

    Attributes:
        original: in the source  # [windows, tokens, hidden]
        refit: what a refit needs besides, or ``None`` if nothing is refitted.
    """

    original: Activations
    refit: RefitStreams | None = None


def embedded_text(
    source: SourceCheckpoint,
    ids: Tensor,
    refit_width: int | None,
    offload: Path | None,
    device: torch.device,
    sinks: Tensor | None = None,
) -> Streams:
    """The text before the first layer.

    Args:
        source: whose embeddings to take.
        ids: token ids, inside the vocabulary  # [windows, tokens]
        refit_width: numbers per token of the converted heads' outputs; ``None``: no refit.
        offload: folder for the activations; ``None``: memory.
        device: that computes with them.
        sinks: for a refit, tokens that each see only themselves: one more window  # [tokens]

    Raises:
        OffloadError: the folder cannot hold them.
        SourceError: the embedding is missing or not finite.
    """
    if sinks is not None:
        ids = torch.cat((ids, sinks[None]))
    windows, tokens = ids.shape
    _, hidden = source.tensors[source.family.embedding].shape
    original = Activations(windows, tokens, hidden, offload, device)
    refit = None
    if refit_width is not None:
        refit = RefitStreams(
            converted=Activations(windows, tokens, hidden, offload, device),
            heads=Activations(windows, tokens, refit_width, offload, device),
            sinks=0 if sinks is None else 1,
        )
    used, rows = ids.unique(return_inverse=True)  # rows: [windows, tokens]
    table, rows = _embedding_rows(source, used).to(original.place), rows.to(original.place)
    factor = source.family.embedding_factor(source.config)
    for window in range(windows):
        x = table[rows[window]].float() * factor  # [tokens, hidden]
        original[window] = x
        if refit is not None:
            refit.converted[window] = x
    return Streams(original, refit)


def _embedding_rows(source: SourceCheckpoint, ids: Tensor) -> Tensor:
    """Rows of the embedding, as stored: all of it in float32 can be larger than a layer.

    Args:
        source: whose embedding.
        ids: which rows, rising  # [rows]

    Returns:
        the rows, in the same order  # [rows, hidden]
    """
    info = source.tensors[source.family.embedding]
    table = torch.empty(len(ids), info.shape[1], dtype=info.dtype)
    start = 0
    for piece in source.pieces(source.family.embedding):
        here = (ids >= start) & (ids < start + len(piece))
        table[here] = piece[ids[here] - start]
        start += len(piece)
    return table
