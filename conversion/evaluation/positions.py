"""Perplexity by position in long windows: where in the context a conversion loses."""

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
    """Ends of the buckets: 512 and its doublings, the last one cut to the window."""
    edges = [FIRST_EDGE]
    while edges[-1] < window:
        edges.append(2 * edges[-1])
    return [0, *(min(edge, window) for edge in edges)]


def position_losses(model: Any, windows: Tensor, progress: Progress, description: str) -> Tensor:
    """Mean negative log-likelihood, in nats, at every position but the first  # [window - 1]

    Args:
        model: a transformers causal language model.
        windows: token ids  # [windows, window]
        progress: told about every window.
        description: what to call the work.
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
    """Both models' losses as perplexity per bucket.

    Args:
        text: the text's name.
        windows: what was measured on  # [windows, window]
        original: as :func:`position_losses` gives them  # [window - 1]
        converted: the same of the converted model  # [window - 1]
    """
    count, window = windows.shape
    edges = bucket_edges(window)
    buckets = []
    for start, end in itertools.pairwise(edges):
        # The loss at index i is of the token at position i + 1; position 0 is not predicted.
        part = slice(max(start, 1) - 1, end - 1)
        positions = original[part].numel()
        if positions:
            buckets.append(
                PositionBucket(
                    start=start,
                    end=end,
                    tokens=positions * count,
                    original=math.exp(original[part].mean()),
                    converted=math.exp(converted[part].mean()),
                )
            )
    return PositionFigures(text=text, window=window, windows=count, buckets=buckets)
