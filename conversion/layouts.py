"""Which cache widths every layer gets: asked for, chosen, or spread."""

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from conversion.calibration.store import StatisticsStore
from conversion.calibration.streams import embedded_text
from conversion.calibration.text import Windows
from conversion.candidates import held_out_divergences
from conversion.layer import LayerConverter
from conversion.progress import Progress
from conversion.recipe import Recipe
from conversion.source import SourceCheckpoint
from conversion.split import split_candidates
from conversion.spread import spread_over_layers
from vllm_mha2mla.config import LatentLayout

logger = logging.getLogger(__name__)


def choose_layouts(
    source: SourceCheckpoint,
    recipe: Recipe,
    converter: LayerConverter,
    load: Callable[[int], Any],
    windows: Windows,
    store: StatisticsStore,
    offload: Path | None,
    progress: Progress,
) -> tuple[list[LatentLayout], dict[str, float]]:
    """Widths of every layer, and what was measured to choose them.

    Exact widths are taken as they are. A budget is spread over layers, or split the same way in
    all layers, by what is lost on text held out from calibration: one width more than the other
    never costs a byte more.

    Args:
        source: the original.
        recipe: what to make.
        converter: of this source and recipe, with ``store``.
        load: loads one of the source's layers, float32, on the converter's device.
        windows: the calibration text and what is held out of it.
        store: statistics that are there already, and where new ones go.
        offload: folder for activations; ``None``: memory.
        progress: told about every layer.

    Returns:
        the layout of every layer; the divergence of each candidate on held-out text, nats.
    """
    config = source.config
    layers, heads, head_dim = (
        config.num_hidden_layers,
        config.num_key_value_heads,
        config.head_dim,
    )
    candidates = split_candidates(recipe, heads, head_dim)
    if len(candidates) == 1 and not recipe.spreads:
        return candidates * layers, {}
    held_out = _held_out(windows)
    measured = all(index in store for index in range(layers))
    streams = None if measured else embedded_text(source, windows.measured, None, offload)
    if recipe.spreads:
        step = recipe.strategies()[0].step(heads, head_dim)
        width = candidates[0].width
        spread = spread_over_layers(
            source, width, step, converter, load, streams, held_out, offload, progress
        )
        named = {f"power_{power:g}": layouts for power, layouts in spread.items()}
        streams = None
    else:
        named = {f"{w.kv_lora_rank}+{w.qk_rope_head_dim}": [w] * layers for w in candidates}
    different = [list(layouts) for layouts in dict.fromkeys(map(tuple, named.values()))]
    measured_losses = held_out_divergences(
        source, different, converter, load, streams, held_out, progress, offload
    )
    losses = {name: measured_losses[different.index(named[name])] for name in named}
    # A candidate that overflows has no divergence, and is not the best.
    best = min(losses, key=lambda name: (math.isnan(losses[name]), losses[name]))
    logger.info("%s", _summary(best, named[best], losses[best]))
    return named[best], {f"held_out_divergence_{name}": loss for name, loss in losses.items()}


def _summary(name: str, layouts: list[LatentLayout], loss: float) -> str:
    ranks = _range([layout.kv_lora_rank for layout in layouts])
    ropes = _range([layout.qk_rope_head_dim for layout in layouts])
    return (
        f"kv_lora_rank {ranks}, qk_rope_head_dim {ropes} ({name}): {loss:.4f} nats lost per token "
        "of held-out text, before any refit"
    )


def _range(widths: list[int]) -> str:
    least, most = min(widths), max(widths)
    return str(least) if least == most else f"{least} to {most}"


def _held_out(windows: Windows) -> Tensor:
    if len(windows.held_out):
        return windows.held_out
    logger.warning(
        "The calibration text is too short to hold any of it out: widths are chosen on the text "
        "they are calibrated on. Give more --calibration text."
    )
    return windows.ids[-1:]
