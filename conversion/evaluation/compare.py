"""Measuring converted checkpoints and their original, one in memory at a time."""

import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from conversion.checkpoint.cache_size import cache_figures
from conversion.checkpoint.loading import load_converted, load_source, read_converted_config
from conversion.errors import EvaluationError
from conversion.evaluation.inputs import Inputs, Measurement, read_inputs
from conversion.evaluation.layer_error import attention_outputs, layer_errors
from conversion.evaluation.perplexity import perplexity, perplexity_figures
from conversion.evaluation.positions import position_figures, position_losses
from conversion.evaluation.results import Entry, Evaluation
from conversion.evaluation.retrieval import answer_all, retrieval_figures
from conversion.evaluation.tasks import run_tasks, task_figures
from conversion.runtime.progress import Progress
from conversion.source import SourceCheckpoint, open_source
from vllm_mha2mla.config import read_provenance

logger = logging.getLogger(__name__)

CONVERTED, ORIGINAL = "Converted", "Original"


@dataclass(frozen=True)
class _Run:
    """What one model gave."""

    text: tuple[float, list[Tensor]] | None  # perplexity; [tokens, hidden] per layer
    positions: list[Tensor]  # [context - 1] per text
    retrieval: list[list[bool]]
    tasks: dict[str, Any]


class Comparison:
    """Checkpoints beside one original, which is measured once, at the first of them.

    They share a tokenizer: all are conversions of that original. Everything in float32.

    Args:
        baseline: the original, as the converter takes it.
        what: what to measure.
        progress: told about all of it.
    """

    def __init__(self, baseline: str, what: Measurement, progress: Progress) -> None:
        self._baseline = baseline
        self._what = what
        self._progress = progress
        self._original: _Run | None = None

    def measure(self, checkpoint: Path, name: str | None = None) -> Entry:
        """Everything asked for, of one checkpoint and the original.

        Files, tasks and the original's config are read before any weights: a mistake in them costs
        no time.

        Args:
            checkpoint: the converted checkpoint.
            name: the entry's; the checkpoint's folder if ``None``.

        Raises:
            CheckpointError, SourceError, CalibrationError, EvaluationError: with the way out.
        """
        config = read_converted_config(checkpoint)
        self._check_original(config)
        tokenizer, inputs = read_inputs(self._what, checkpoint, config)
        model, _ = load_converted(checkpoint, torch.float32)
        ours = _run(model, tokenizer, inputs, self._what.limit, self._progress, CONVERTED)
        del model
        theirs = self._measured_original(tokenizer, inputs)
        entry = Entry(
            name=name or checkpoint.resolve().name,
            method=_method(read_provenance(config).recipe),
            cache=cache_figures(config),
            positions=[
                position_figures(text, windows, before, after)
                for (text, windows), before, after in zip(
                    inputs.long_texts, theirs.positions, ours.positions, strict=True
                )
            ],
            retrieval=[
                retrieval_figures(asked, before, after)
                for asked, before, after in zip(
                    inputs.retrieval, theirs.retrieval, ours.retrieval, strict=True
                )
            ],
            tasks=task_figures(theirs.tasks, ours.tasks) if inputs.tasks else [],
        )
        if inputs.text is not None and theirs.text is not None and ours.text is not None:
            entry.perplexity = perplexity_figures(inputs.text, theirs.text[0], ours.text[0])
            entry.layer_error = layer_errors(theirs.text[1], ours.text[1])
        return entry

    @cached_property
    def _source(self) -> SourceCheckpoint:
        return open_source(self._baseline)

    def _check_original(self, config: Any) -> None:
        source = self._source
        for key in ("vocab_size", "num_hidden_layers", "hidden_size"):
            theirs, ours = getattr(source.config, key), getattr(config, key)
            if theirs != ours:
                raise EvaluationError(
                    f"{self._baseline}: its {key} is {theirs} and the checkpoint's {ours}; give "
                    "the model it was made from"
                )
        made_from = read_provenance(config).source
        if source.fingerprint() != made_from.fingerprint:
            logger.warning(
                "%s: not the very files the checkpoint was made from, %s",
                self._baseline,
                made_from.name,
            )

    def _measured_original(self, tokenizer: PreTrainedTokenizerBase, inputs: Inputs) -> _Run:
        if self._original is None:
            model, _ = load_source(self._baseline, torch.float32)
            self._original = _run(
                model, tokenizer, inputs, self._what.limit, self._progress, ORIGINAL
            )
        return self._original


def measure(checkpoint: Path, baseline: str, what: Measurement, progress: Progress) -> Entry:
    """One checkpoint beside its original; arguments and errors as for :class:`Comparison`."""
    return Comparison(baseline, what, progress).measure(checkpoint)


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
        CheckpointError, SourceError, CalibrationError, EvaluationError: with the way out.
    """
    entry = measure(checkpoint, baseline, Measurement(text, window, limit), progress)
    assert entry.perplexity is not None
    return Evaluation(perplexity=entry.perplexity, cache=entry.cache)


def _method(recipe: dict[str, Any]) -> str:
    # A recipe may replace a method's parts: that is another method in a plot.
    parts = [recipe.get(key) for key in ("method", "rotary", "latent")]
    return " + ".join(str(part) for part in parts if part)


def _run(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    inputs: Inputs,
    limit: int | None,
    progress: Progress,
    label: str,
) -> _Run:
    text = None
    if inputs.text is not None:
        value = perplexity(model, inputs.text, progress, label)
        text = value, attention_outputs(model, inputs.text[0])
    return _Run(
        text=text,
        positions=[
            position_losses(model, windows, progress, f"{label}, {name}")
            for name, windows in inputs.long_texts
        ],
        retrieval=[
            answer_all(model, tokenizer, asked, progress, f"{label}, {asked.name}")
            for asked in inputs.retrieval
        ],
        # Last: the harness may give the tokenizer a padding token.
        tasks=run_tasks(model, tokenizer, inputs.tasks, limit, progress, f"{label}, tasks")
        if inputs.tasks
        else {},
    )
