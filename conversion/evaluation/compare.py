"""Measures converted checkpoints and their original, one model in memory at a time."""

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
from conversion.errors import SourceError
from conversion.evaluation.inputs import Inputs, Measurement, read_inputs
from conversion.evaluation.layer_error import attention_outputs, layer_errors
from conversion.evaluation.perplexity import perplexity, perplexity_figures
from conversion.evaluation.positions import position_figures, position_losses
from conversion.evaluation.results import Entry
from conversion.evaluation.retrieval import answer_all, retrieval_figures
from conversion.evaluation.tasks import run_tasks, task_figures
from conversion.runtime.memory_errors import memory_errors
from conversion.runtime.progress import Progress
from conversion.source import SourceCheckpoint, open_source
from vllm_mha2mla.config import read_provenance

logger = logging.getLogger(__name__)

CONVERTED, ORIGINAL = "Converted", "Original"
WAY_OUT = "lower --window or --context, or take --device cpu"


@dataclass(frozen=True)
class _ModelResult:
    """The measurements of one model.

    Attributes:
        text: perplexity, and every layer's attention output on the first window
            # num_layers x [window, hidden]; ``None`` without a text.
        positions: mean loss at every position of every long text  # each [context - 1]
        retrieval: right or wrong, per file and question.
        tasks: the harness's results; empty without tasks.
    """

    text: tuple[float, list[Tensor]] | None
    positions: list[Tensor]
    retrieval: list[list[bool]]
    tasks: dict[str, Any]


class Comparison:
    """Measures checkpoints beside their original, which is measured once, with the first of them.

    All checkpoints are conversions of that original and share its tokenizer. Models run in
    float32, and only one is in memory at a time.

    Args:
        baseline: the original, as the converter takes it.
        measurement: the figures to measure, and on what.
        progress: shows every measurement as a task of its own.
        device: where the models run.
    """

    def __init__(
        self, baseline: str, measurement: Measurement, progress: Progress, device: str = "cpu"
    ) -> None:
        self._baseline = baseline
        self._measurement = measurement
        self._progress = progress
        self._device = device
        self._original: _ModelResult | None = None

    def measure(self, checkpoint: Path, name: str | None = None) -> Entry:
        """Measure one checkpoint beside the original.

        Files, tasks and the original's config are read before any weights, so that a mistake in
        them shows at once.

        Args:
            checkpoint: folder of the converted checkpoint.
            name: name of the entry; ``None``: the folder's.

        Raises:
            CheckpointError, SourceError, TextError, UsageError, MissingExtraError,
                DeviceMemoryError: with the way out.
        """
        config = read_converted_config(checkpoint)
        self._check_original(config)
        tokenizer, inputs = read_inputs(self._measurement, checkpoint, config)
        with memory_errors(WAY_OUT):
            model = load_converted(checkpoint, torch.float32)[0].to(self._device)
            converted = _measure_model(
                model, tokenizer, inputs, self._measurement.limit, self._progress, CONVERTED
            )
        # Before the original is loaded: one model in memory at a time.
        del model
        original = self._measured_original(tokenizer, inputs)
        entry = Entry(
            name=name or checkpoint.resolve().name,
            method=_method(read_provenance(config).recipe),
            cache=cache_figures(config),
            positions=[
                position_figures(text, windows, before, after)
                for (text, windows), before, after in zip(
                    inputs.long_texts, original.positions, converted.positions, strict=True
                )
            ],
            retrieval=[
                retrieval_figures(examples, before, after)
                for examples, before, after in zip(
                    inputs.retrieval, original.retrieval, converted.retrieval, strict=True
                )
            ],
            tasks=task_figures(original.tasks, converted.tasks) if inputs.tasks else [],
        )
        if inputs.text is not None and original.text is not None and converted.text is not None:
            entry.perplexity = perplexity_figures(inputs.text, original.text[0], converted.text[0])
            entry.layer_error = layer_errors(original.text[1], converted.text[1])
        return entry

    @cached_property
    def _source(self) -> SourceCheckpoint:
        return open_source(self._baseline)

    def _check_original(self, config: Any) -> None:
        source = self._source
        for key in ("vocab_size", "num_hidden_layers", "hidden_size"):
            original, converted = getattr(source.config, key), getattr(config, key)
            if original != converted:
                raise SourceError(
                    f"{self._baseline}: its {key} is {original} and the checkpoint's {converted}; "
                    "give the model it was made from"
                )
        made_from = read_provenance(config).source
        if source.fingerprint() != made_from.fingerprint:
            logger.warning(
                "%s: not the very files the checkpoint was made from, %s",
                self._baseline,
                made_from.name,
            )

    def _measured_original(
        self, tokenizer: PreTrainedTokenizerBase, inputs: Inputs
    ) -> _ModelResult:
        if self._original is None:
            with memory_errors(WAY_OUT):
                model = load_source(self._baseline, torch.float32)[0].to(self._device)
                self._original = _measure_model(
                    model, tokenizer, inputs, self._measurement.limit, self._progress, ORIGINAL
                )
        return self._original


def measure(
    checkpoint: Path,
    baseline: str,
    measurement: Measurement,
    progress: Progress,
    device: str = "cpu",
) -> Entry:
    """Measure one checkpoint beside its original; see :class:`Comparison` for arguments and errors.

    Example::

        measure(Path("out"), "model", Measurement(Path("test.txt")), Progress()).perplexity
    """
    return Comparison(baseline, measurement, progress, device).measure(checkpoint)


def _method(recipe: dict[str, Any]) -> str:
    # A recipe may replace a method's parts: that is another method in a plot.
    parts = [recipe.get(key) for key in ("method", "rotary", "latent")]
    return " + ".join(str(part) for part in parts if part)


def _measure_model(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    inputs: Inputs,
    limit: int | None,
    progress: Progress,
    label: str,
) -> _ModelResult:
    text = None
    if inputs.text is not None:
        value = perplexity(model, inputs.text, progress, label)
        text = value, attention_outputs(model, inputs.text[0])
    return _ModelResult(
        text=text,
        positions=[
            position_losses(model, windows, progress, f"{label}, {name}")
            for name, windows in inputs.long_texts
        ],
        retrieval=[
            answer_all(model, tokenizer, examples, progress, f"{label}, {examples.name}")
            for examples in inputs.retrieval
        ],
        # Last, because the harness may give the tokenizer a padding token.
        tasks=run_tasks(model, tokenizer, inputs.tasks, limit, progress, f"{label}, tasks")
        if inputs.tasks
        else {},
    )
