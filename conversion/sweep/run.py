"""Several recipes over one calibration, each beside the original; picks up where it stopped."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from conversion.checkpoint.dtypes import written_dtype
from conversion.checkpoint.inspection import inspect
from conversion.checkpoint.staging import locked
from conversion.errors import first_line
from conversion.evaluation import Comparison, Entry, Measurement
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
    """What to run.

    Attributes:
        source: the original.
        recipes: by name; all with the same calibration text, whatever share of it repeats itself.
        text: held-out text that all of them are measured on.
        window: tokens per window of it.
        windows: how many windows at most; ``None`` for all.
        out: folder for checkpoints and statistics while they are needed.
        results: the file with all figures; those already in it are not measured again.
        keep: whether the converted checkpoints stay.
    """

    source: SourceCheckpoint
    recipes: Mapping[str, Recipe]
    text: str
    window: int
    windows: int | None
    out: Path
    results: Path
    keep: bool = False


def run_sweep(what: Sweep, options: Options, progress: Progress) -> SweepResults:
    """Convert with every recipe and measure the result.

    Statistics of the original are measured once, and so is its perplexity. The results are written
    after every recipe. A recipe that fails is one line among them, and the others go on.

    Args:
        what: what to run.
        options: of every conversion.
        progress: told about all of it.

    Returns:
        the results of these recipes, in their order.

    Raises:
        CalibrationError: calibration or evaluation text cannot be used.
        OutputError, EvaluationError: the results cannot be read or written.
    """
    options = replace(options, dtype=written_dtype(what.source, options.dtype))
    subject = _subject(what, options)
    make_folder(what.out)
    with locked(what.out, what.out):
        return _run_all(what, subject, options, progress)


def _run_all(what: Sweep, subject: Subject, options: Options, progress: Progress) -> SweepResults:
    known = SweepResults.read(what.results)
    if known is None or known.subject != subject:
        if known is not None:
            logger.info("%s: of another model, text or release; starting anew", what.results)
        known = SweepResults(source=what.source.name, subject=subject)
    known.failed = []
    measurement = Measurement(what.text, what.window, what.windows)
    folder = SweepFolder(what.out, what.keep)
    comparison = Comparison(what.source.name, measurement, progress)
    for name, recipe in what.recipes.items():
        if not known.has(name, recipe):
            known.drop(name)
        elif not what.keep or folder.has_made(name, recipe, subject, what.source):
            logger.info("%s: measured before", name)
            continue
        try:
            result = _run(what, name, recipe, options, progress, folder, subject, comparison)
            known.drop(name)
            known.finished.append(result)
        # Whatever ends one recipe must not take the hours of the others with it.
        except Exception as error:
            if interruption.came:
                raise
            reason = first_line(error)
            if not isinstance(error, MHA2MLAError):
                logger.debug("%s", name, exc_info=error)
                reason = f"{type(error).__name__}: {reason}"
            logger.info("%s: failed (%s)", name, reason)
            known.failed.append(Failed(name=name, error=reason))
        known.write(what.results)
    folder.clear_statistics()
    return known.of(list(what.recipes))


def _run(
    what: Sweep,
    name: str,
    recipe: Recipe,
    options: Options,
    progress: Progress,
    folder: SweepFolder,
    subject: Subject,
    comparison: Comparison,
) -> Finished:
    if folder.has_made(name, recipe, subject, what.source):
        logger.info("%s: converted before", name)
        return _measured(folder.kept(name), name, recipe, comparison)
    with folder.converted_to(name) as checkpoint:
        logger.info("%s: converting", name)
        # It leaves nothing when it fails: what is there then was there before.
        store = folder.statistics(subject, recipe)
        convert(what.source, checkpoint, recipe, options, progress, statistics=store)
        return _measured(checkpoint, name, recipe, comparison)


def _measured(checkpoint: Path, name: str, recipe: Recipe, comparison: Comparison) -> Finished:
    entry, found = comparison.measure(checkpoint, name), inspect(checkpoint)
    _log(entry)
    return Finished(
        name=name,
        recipe=recipe_key(recipe),
        kv_lora_rank=found.kv_lora_rank,
        qk_rope_head_dim=found.qk_rope_head_dim,
        figures=found.figures,
        entry=entry,
    )


def _log(entry: Entry) -> None:
    if entry.perplexity is not None:
        logger.info("%s: perplexity %.3f", entry.name, entry.perplexity.converted)


def _subject(what: Sweep, options: Options) -> Subject:
    recipe = next(iter(what.recipes.values())).model_copy(update={"repeats": 0.0})
    windows = calibration_text(what.source, recipe)
    tokenizer, config = what.source.tokenizer(), what.source.config
    text = text_windows(tokenizer, config, what.text, what.window, what.windows)
    return Subject(
        version=__version__,
        source_fingerprint=what.source.fingerprint(),
        calibration=windows.info,
        held_out_fingerprint=fingerprint(windows.held_out),
        text_fingerprint=fingerprint(text),
        text_window=text.shape[1],
        dtype=str(options.dtype).removeprefix("torch."),
    )
