"""Measures converted checkpoints, their original and its quantised caches, one model at a time."""

import logging
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from conversion.checkpoint.cache_size import CacheFigures, cache_figures, number_bytes
from conversion.checkpoint.loading import load_converted, read_converted_config, source_model
from conversion.errors import SourceError
from conversion.evaluation.chat import ChatReference, chat_figures, chat_reference
from conversion.evaluation.inputs import Inputs, Measurement, read_inputs
from conversion.evaluation.layer_error import layer_errors
from conversion.evaluation.measured import Measured, measure_model
from conversion.evaluation.perplexity import perplexity_figures
from conversion.evaluation.positions import position_figures
from conversion.evaluation.quantised_cache import (
    chosen_kinds,
    quantised_cache,
    quantised_cache_figures,
)
from conversion.evaluation.results import RIVAL, Comparison, Entry
from conversion.evaluation.retrieval import retrieval_figures
from conversion.evaluation.tasks import task_figures
from conversion.runtime.dtypes import dtype_named
from conversion.runtime.memory_errors import memory_errors
from conversion.runtime.progress import Progress
from conversion.source import SourceCheckpoint, open_source
from conversion.source.folder import FolderCheckpoint
from vllm_mha2mla.config import read_provenance

logger = logging.getLogger(__name__)

CONVERTED, ORIGINAL = "Converted", "Original"
WAY_OUT = "lower --window or --context, or take --device cpu"


@dataclass(frozen=True)
class _Originals:
    """The original as it is, in quantised caches by their names, and its answers in a chat."""

    plain: Measured
    quantised: dict[str, Measured]
    chat: ChatReference | None


class Comparer:
    """Measures checkpoints beside their original, which is measured once, before the first of them.

    All checkpoints are conversions of that original and share its tokenizer. Only one model is in
    memory at a time.

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
        self._dtype = dtype_named(measurement.dtype)

    def measure(self, checkpoint: Path, name: str | None = None) -> Entry:
        """Measure one checkpoint beside the original.

        Files, tasks and both configs are read before any weights, so that a mistake in them shows
        at once.

        Args:
            checkpoint: folder of the converted checkpoint.
            name: name of the entry; ``None``: the folder's.

        Raises:
            CheckpointError, SourceError, TextError, UsageError, MissingExtraError,
                DeviceMemoryError: with the way out.
        """
        config = read_converted_config(checkpoint)
        self._check_original(config)
        # The headers of its weights, before hours with the original.
        FolderCheckpoint(checkpoint)
        inputs, originals = self._inputs, self._originals
        with memory_errors(WAY_OUT):
            model = load_converted(checkpoint, self._dtype)[0].to(self._device)
            converted = measure_model(model, inputs, self._progress, CONVERTED, originals.chat)
        return _entry(
            Entry(
                name=name or checkpoint.resolve().name,
                method=_method(read_provenance(config).recipe),
                cache=cache_figures(config),
                dtype=self._measurement.dtype,
            ),
            inputs,
            originals,
            converted,
        )

    def rivals(self, itemsize: int) -> list[Entry]:
        """Measure the original in each of the measurement's quantised caches.

        Args:
            itemsize: bytes per number of the plain cache beside them.

        Raises:
            SourceError, TextError, UsageError, MissingExtraError, DeviceMemoryError: with the way
                out.
        """
        if not self._measurement.kv_cache_dtypes:
            return []
        inputs, originals = self._inputs, self._originals
        return [
            _entry(
                Entry(
                    name=f"original, {name}",
                    method=RIVAL,
                    cache=self._rival_cache(name, itemsize),
                    kv_cache_dtype=name,
                    dtype=self._measurement.dtype,
                ),
                inputs,
                originals,
                measured,
            )
            for name, measured in originals.quantised.items()
        ]

    @cached_property
    def _source(self) -> SourceCheckpoint:
        return open_source(self._baseline)

    @cached_property
    def _inputs(self) -> Inputs:
        return read_inputs(self._measurement, self._source)

    @cached_property
    def _originals(self) -> _Originals:
        inputs, source, chat = self._inputs, self._source, None
        kinds = chosen_kinds(self._measurement.kv_cache_dtypes, source.config)
        quantised = {}
        with memory_errors(WAY_OUT):
            model = source_model(source, self._dtype).to(self._device)
            plain = measure_model(model, inputs, self._progress, ORIGINAL)
            if inputs.chat is not None:
                chat = chat_reference(
                    model, inputs.tokenizer, inputs.chat, self._progress, ORIGINAL
                )
            for name, kind in kinds.items():
                with quantised_cache(model, kind):
                    label = f"{ORIGINAL}, {name}"
                    quantised[name] = measure_model(model, inputs, self._progress, label, chat)
        return _Originals(plain, quantised, chat)

    def _rival_cache(self, name: str, itemsize: int) -> CacheFigures:
        config = self._source.config
        kind = chosen_kinds([name], config)[name]
        return quantised_cache_figures(config, kind, itemsize)

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


def measure(
    checkpoint: Path,
    baseline: str,
    measurement: Measurement,
    progress: Progress,
    device: str = "cpu",
) -> Comparison:
    """Measure one checkpoint beside its original; see :class:`Comparer` for arguments and errors.

    Example::

        measure(Path("out"), "model", Measurement(Path("test.txt")), Progress()).perplexity
    """
    comparer = Comparer(baseline, measurement, progress, device)
    entry = comparer.measure(checkpoint)
    rivals = comparer.rivals(number_bytes(read_converted_config(checkpoint)))
    return Comparison(**dict(entry), rivals=rivals)


def _method(recipe: dict[str, Any]) -> str:
    # A recipe may replace a method's parts: that is another method in a plot.
    parts = [recipe.get(key) for key in ("method", "rotary", "latent")]
    return " + ".join(str(part) for part in parts if part)


def _entry(bare: Entry, inputs: Inputs, originals: _Originals, other: Measured) -> Entry:
    """Fill an entry with the figures of a model beside the original's."""
    original = originals.plain
    figures: dict[str, Any] = {
        "positions": [
            position_figures(text, windows, before, after)
            for (text, windows), before, after in zip(
                inputs.long_texts, original.positions, other.positions, strict=True
            )
        ],
        "retrieval": [
            retrieval_figures(examples, before, after)
            for examples, before, after in zip(
                inputs.retrieval, original.retrieval, other.retrieval, strict=True
            )
        ],
        "tasks": task_figures(original.tasks, other.tasks) if inputs.tasks else [],
    }
    if inputs.text is not None and original.text is not None and other.text is not None:
        figures["perplexity"] = perplexity_figures(inputs.text, original.text[0], other.text[0])
        figures["layer_error"] = layer_errors(original.text[1], other.text[1])
    if inputs.chat is not None and originals.chat is not None and other.chat is not None:
        figures["chat"] = chat_figures(inputs.chat, originals.chat, other.chat)
    return bare.model_copy(update=figures)
