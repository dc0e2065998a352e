"""Perplexity of a converted checkpoint beside its original's."""

import math
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from torch import Tensor

from conversion.calibration.text import evaluation_windows, read_text
from conversion.errors import CalibrationError
from conversion.loading import converted_config, load_converted, load_source
from conversion.progress import Progress
from vllm_mha2mla.config import cache_bytes_per_token, layer_layouts, read_provenance


class PerplexityFigures(BaseModel):
    """Perplexity over the same windows."""

    converted: float
    baseline: float
    ratio: float
    window: int
    windows: int


class CacheFigures(BaseModel):
    """Cache of the whole model, in the checkpoint's dtype."""

    bytes_per_token: int
    baseline_bytes_per_token: int
    fraction: float


class Evaluation(BaseModel):
    """What ``mha2mla eval`` measures."""

    perplexity: PerplexityFigures
    cache: CacheFigures


@torch.no_grad()
def perplexity(model: Any, windows: Tensor, progress: Progress, description: str) -> float:
    """``exp`` of the mean negative log-likelihood of every predicted token.

    Args:
        model: a transformers causal language model.
        windows: token ids; the first of each window is not predicted  # [windows, window]
        progress: told about every window.
        description: what to call the work.
    """
    total = 0.0
    with progress.task(description, windows.shape[0]) as advance:
        for ids in windows:
            logits = model(ids.unsqueeze(0), use_cache=False).logits[0, :-1].float()
            total += float(torch.nn.functional.cross_entropy(logits, ids[1:], reduction="sum"))
            advance()
    return math.exp(total / (windows.numel() - windows.shape[0]))


def cache_figures(config: Any) -> CacheFigures:
    """Cache bytes per token of a converted checkpoint and of its source."""
    layouts = layer_layouts(config)
    itemsize = config.dtype.itemsize
    baseline = read_provenance(config).source.cache_width * len(layouts) * itemsize
    converted = cache_bytes_per_token(layouts, itemsize)
    return CacheFigures(
        bytes_per_token=converted,
        baseline_bytes_per_token=baseline,
        fraction=converted / baseline,
    )


def evaluate(
    checkpoint: Path,
    baseline: str,
    text: str | Path,
    window: int,
    limit: int | None,
    progress: Progress,
) -> Evaluation:
    """Perplexity of both on a text, float32: whole text tokenised once, windows without overlap.

    Args:
        checkpoint: the converted checkpoint.
        baseline: its source, as the converter takes it.
        text: the text itself, or a file with it.
        window: tokens per window.
        limit: how many windows at most; ``None`` for all.
        progress: told about every window.

    Raises:
        CheckpointError, SourceError, CalibrationError: with the way out.
    """
    cache = cache_figures(converted_config(checkpoint))
    model, tokenizer = load_converted(checkpoint, torch.float32)
    if isinstance(text, Path):
        text = read_text(text, tokenizer)
    windows = evaluation_windows(tokenizer, text, window, limit)
    converted = perplexity(model, windows, progress, "Converted")
    del model
    original, _ = load_source(baseline, torch.float32)
    if original.config.vocab_size <= int(windows.max()):
        raise CalibrationError(
            f"{baseline}: its vocabulary is smaller than the checkpoint's; it is not the source"
        )
    reference = perplexity(original, windows, progress, "Original")
    return Evaluation(
        perplexity=PerplexityFigures(
            converted=converted,
            baseline=reference,
            ratio=converted / reference,
            window=windows.shape[1],
            windows=windows.shape[0],
        ),
        cache=cache,
    )
