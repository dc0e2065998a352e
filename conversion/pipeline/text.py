"""The calibration text: from a recipe's files to windows, and to hidden states before a layer."""

from pathlib import Path
from typing import Any

from conversion.calibration.streams import Streams, embedded_text
from conversion.layers.measurements import Measurements
from conversion.recipes.recipe import Recipe
from conversion.runtime.numbers import ceil_div
from conversion.source import SourceCheckpoint
from conversion.text.sinks import sink_tokens
from conversion.text.tokens import check_vocabulary
from conversion.text.windows import Windows, calibration_windows


def calibration_text(source: SourceCheckpoint, recipe: Recipe) -> Windows:
    """The calibration text as a recipe takes it, and what it holds out.

    Raises:
        TextError: it cannot be used, or the tokenizer is not this model's.
    """
    window = source.window(recipe.window)
    windows = calibration_windows(
        source.tokenizer(), calibration_files(recipe), recipe.text_tokens, window, recipe.held_out
    )
    windows = windows.measured_first(ceil_div(recipe.calibration_tokens, window))
    windows = windows.repeated(recipe.repeats)
    check_vocabulary(source.name, source.config.vocab_size, windows.ids, windows.held_out)
    return windows


def calibration_files(recipe: Recipe) -> list[Path]:
    """The files of a recipe's calibration text."""
    return [Path(name).expanduser() for name in recipe.calibration]


def calibration_streams(
    measurements: Measurements,
    converted: Any,
    recipe: Recipe,
    windows: Windows,
    offload: Path | None,
) -> Streams | None:
    """The embedded calibration text; ``None`` if no layer has a use for it.

    Args:
        measurements: of the source's layers.
        converted: the converted model's config.
        recipe: what to make.
        windows: the text.
        offload: folder for activations; ``None``: memory.
    """
    source, device = measurements.layers.source, measurements.layers.device
    if not recipe.refits and measurements.complete:
        return None
    if not recipe.refits:
        return embedded_text(source, windows.measured, None, offload, device)
    width = converted.num_attention_heads * converted.v_head_dim
    sinks = None
    if recipe.refit_sinks:
        sinks = sink_tokens(source.tokenizer(), windows.ids, source.config.vocab_size)
    return embedded_text(source, windows.ids, width, offload, device, sinks)
