"""Runs a sweep: converts and measures recipe by recipe, and resumes where it stopped."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from conversion.checkpoint.dtypes import written_dtype
from conversion.checkpoint.inspection import RowBits, inspect
from conversion.checkpoint.locks import locked
from conversion.errors import first_line
from conversion.evaluation import Comparer, Entry, Measurement
from conversion.evaluation.inputs import text_windows
from conversion.pipeline import Options, calibration_text, convert
from conversion.recipes.recipe import Recipe
from conversion.runtime.interruption import interruption
from conversion.runtime.output_files import make_folder
from conversion.runtime.progress import Progress
from conversion.source import SourceCheckpoint
from conversion.sweep.folder import SweepFolder
from conversion.sweep.results import Failed, Finished, Subject, SweepResults, recipe_key
from conversion.text.tokens import fingerprint
from vllm_mha2mla.errors import MHA2MLAError
from vllm_mha2mla.version import __version__

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sweep:
    """A request to run several recipes.

    Attributes:
        source: the original.
        recipes: recipes by name. All share one calibration text; only ``repeats`` may differ.
        text: the text that perplexity is measured on.
        window: tokens per window of that text.
        windows: largest number of windows; ``None``: all.
        kv_cache_dtypes: quantised caches of vLLM that the original is measured in too.
        out: folder for checkpoints and statistics while they are needed.
        results: the file with all figures; recipes already in it are not run again.
        keep: keep the converted checkpoints.
    """

    source: SourceCheckpoint
    recipes: Mapping[str, Recipe]
    text: str
    window: int
    windows: int | None
    out: Path
    results: Path
    keep: bool = False
    kv_cache_dtypes: tuple[str, ...] = ()


def run_sweep(sweep: Sweep, options: Options, progress: Progress) -> SweepResults:
    """Convert with every recipe and measure the results.

    Statistics of the original and its perplexity are measured once. Results are written after
    every recipe. A recipe that fails becomes one line of them, and the others go on.

    Args:
        sweep: the recipes, the text and where results go.
        options: options of every conversion.
        progress: shows every conversion and measurement.

    Returns:
        the results of these recipes, in their order.

    Raises:
        TextError: calibration or evaluation text cannot be used.
        OutputError: the results cannot be read or written.
    """
    options = replace(options, dtype=written_dtype(sweep.source, options.dtype))
    subject = _subject(sweep, options)
    make_folder(sweep.out)
    with locked(sweep.out / ".lock", sweep.out):
        return _run_all(sweep, subject, options, progress)


def _run_all(sweep: Sweep, subject: Subject, options: Options, progress: Progress) -> SweepResults:
    known = SweepResults.read(sweep.results)
    if known is None or known.subject != subject:
        if known is not None:
            logger.info("%s: of another model, text or release; starting anew", sweep.results)
        known = SweepResults(source=sweep.source.name, subject=subject)
    known.failed = []
    measurement = Measurement(
        sweep.text, sweep.window, sweep.windows, kv_cache_dtypes=sweep.kv_cache_dtypes
    )
    folder = SweepFolder(sweep.out, sweep.keep)
    comparer = Comparer(sweep.source.name, measurement, progress, options.device)
    if not known.has_rivals(sweep.kv_cache_dtypes):
        assert options.dtype is not None
        known.rivals = comparer.rivals(options.dtype.itemsize)
        known.write(sweep.results)
    for name, recipe in sweep.recipes.items():
        if not known.has(name, recipe):
            known.drop(name)
        elif not sweep.keep or folder.has_made(name, recipe, subject, sweep.source):
            logger.info("%s: measured before", name)
            continue
        try:
            result = _run(sweep, name, recipe, options, progress, folder, subject, comparer)
            known.drop(name)
            known.finished.append(result)
        # Any failure: one recipe must not take the hours of the others with it.
        except Exception as error:
            if interruption.came:
                raise
            reason = first_line(error)
            if not isinstance(error, MHA2MLAError):
                logger.debug("%s", name, exc_info=error)
                reason = f"{type(error).__name__}: {reason}"
            logger.info("%s: failed (%s)", name, reason)
            known.failed.append(Failed(name=name, error=reason))
        known.write(sweep.results)
    folder.clear_statistics()
    return known.select(list(sweep.recipes))


def _run(
    sweep: Sweep,
    name: str,
    recipe: Recipe,
    options: Options,
    progress: Progress,
    folder: SweepFolder,
    subject: Subject,
    comparer: Comparer,
) -> Finished:
    if folder.has_made(name, recipe, subject, sweep.source):
        logger.info("%s: converted before", name)
        return _measured(folder.kept(name), name, recipe, comparer)
    with folder.converted_to(name) as checkpoint:
        logger.info("%s: converting", name)
        # A failed conversion leaves nothing: whatever is in the folder then was there before.
        store = folder.statistics(subject, recipe)
        convert(sweep.source, checkpoint, recipe, options, progress, statistics=store)
        return _measured(checkpoint, name, recipe, comparer)


def _measured(checkpoint: Path, name: str, recipe: Recipe, comparer: Comparer) -> Finished:
    entry, inspection = comparer.measure(checkpoint, name), inspect(checkpoint)
    _log(entry)
    return Finished(
        name=name,
        recipe=recipe_key(recipe),
        kv_lora_rank=inspection.kv_lora_rank,
        qk_rope_head_dim=inspection.qk_rope_head_dim,
        bits=None if inspection.row_bits is None else _mean_bits(inspection.row_bits),
        figures=inspection.figures,
        entry=entry,
    )


def _mean_bits(layers: Sequence[RowBits]) -> float:
    columns = [pair for layer in layers for pair in (*layer.latent.items(), *layer.rotary.items())]
    return sum(bits * count for bits, count in columns) / sum(count for _, count in columns)


def _log(entry: Entry) -> None:
    if entry.perplexity is not None:
        logger.info("%s: perplexity %.3f", entry.name, entry.perplexity.converted)


def _subject(sweep: Sweep, options: Options) -> Subject:
    recipe = next(iter(sweep.recipes.values())).model_copy(update={"repeats": 0.0})
    windows = calibration_text(sweep.source, recipe)
    tokenizer, config = sweep.source.tokenizer(), sweep.source.config
    text = text_windows(tokenizer, config, sweep.text, sweep.window, sweep.windows)
    return Subject(
        version=__version__,
        source_fingerprint=sweep.source.fingerprint(),
        calibration=windows.info,
        held_out_fingerprint=fingerprint(windows.held_out),
        text_fingerprint=fingerprint(text),
        text_window=text.shape[1],
        dtype=str(options.dtype).removeprefix("torch."),
    )
