"""Perplexity: ``exp`` of the mean negative log-likelihood of every predicted token."""

import math
from typing import Any

import torch
from torch import Tensor

from conversion.evaluation.results import PerplexityFigures
from conversion.runtime.progress import Progress


@torch.no_grad()
def perplexity(model: Any, windows: Tensor, progress: Progress, description: str) -> float:
    """Compute ``exp`` of the mean negative log-likelihood of every predicted token.

    Args:
        model: a transformers causal language model.
        windows: token ids; the first of each window is not predicted  # [windows, window]
        progress: shows one step per window.
        description: label of the work.
    """
    total = 0.0
    with progress.task(description, windows.shape[0]) as advance:
        for ids in windows.to(model.device):
            logits = model(ids.unsqueeze(0), use_cache=False).logits[0, :-1].float()
            total += float(torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum"))
            advance()
    return math.exp(total / (windows.numel() - windows.shape[0]))


def perplexity_figures(windows: Tensor, original: float, converted: float) -> PerplexityFigures:
    """Put both models' perplexities beside each other; ``windows``  # [windows, window]"""
    return PerplexityFigures(
        converted=converted,
        baseline=original,
        ratio=converted / original,
        window=windows.shape[1],
        windows=windows.shape[0],
    )
