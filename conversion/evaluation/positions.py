"""Perplexity by position in long windows: it shows where in the context a conversion loses."""

import itertools
import math
from typing import Any

import torch
from torch import Tensor

from conversion.evaluation.chunked import token_losses
from conversion.evaluation.results import PositionBucket, PositionFigures
from conversion.runtime.progress import Progress

FIRST_EDGE = 512


def bucket_edges(window: int) -> list[int]:
    """The edges of the buckets: 0, 512 and its doublings, the last one cut to the window."""
    edges = [FIRST_EDGE]
    while edges[-1] < window:
        edges.append(2 * edges[-1])
    return [0, *(min(edge, window) for edge in edges)]


def position_losses(model: Any, windows: Tensor, progress: Progress, description: str) -> Tensor:
    """Average the loss over windows, at every position but the first.

    Args:
        model: a transformers causal language model.
        windows: token ids  # [windows, window]
        progress: shows one step per window.
        description: label of the work.

    Returns:
        mean negative log-likelihood in nats  # [window - 1], float64
    """
    total = torch.zeros(windows.shape[1] - 1, dtype=torch.float64)
    with progress.task(description, windows.shape[0]) as advance:
        for ids in windows:
            total += token_losses(model, ids)
            advance()
    return total / windows.shape[0]


def position_figures(
    text: str, windows: Tensor, original: Tensor, converted: Tensor
) -> PositionFigures:
    """Turn both models' losses into perplexities per bucket of positions.

    Args:
        text: name of the text.
        windows: token ids that the losses were measured on  # [windows, window]
        original: losses of :func:`position_losses`  # [window - 1]
        converted: the same of the converted model  # [window - 1]
    """
    count, window = windows.shape
    edges = bucket_edges(window)
    buckets = []
    for start, end in itertools.pairwise(edges):
        # The loss at index i is of the token at position i + 1; position 0 is not predicted.
        bucket = slice(max(start, 1) - 1, end - 1)
        positions = original[bucket].numel()
        if positions:
            buckets.append(
                PositionBucket(
                    start=start,
                    end=end,
                    tokens=positions * count,
                    original=math.exp(original[bucket].mean()),
                    converted=math.exp(converted[bucket].mean()),
                )
            )
    return PositionFigures(text=text, window=window, windows=count, buckets=buckets)
