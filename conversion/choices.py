"""What held-out text decides: cache widths of every layer, and how much tokens count."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from conversion.allocation import LayerCosts
from conversion.backward import backward_sweep
from conversion.calibration.store import StatisticsStore
from conversion.calibration.streams import embedded_text
from conversion.calibration.text import Windows
from conversion.candidates import held_out_divergences
from conversion.layer import LayerConverter
from conversion.progress import Progress
from conversion.recipe import Recipe
from conversion.sensitivity import AttentionGradients, layer_costs
from conversion.source import SourceCheckpoint
from conversion.split import split_candidates
from conversion.spread import spread_over_layers, width_grid
from conversion.token_weights import TokenWeights, fit_token_weights
from vllm_mha2mla.config import LatentLayout

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choices:
    """What is decided before layers are converted.

    Attributes:
        layouts: cache widths of every layer.
        figures: the divergence of each candidate on held-out text, nats.
        token_weights: of every layer; ``None``: tokens count the same, or nothing is refitted.
    """

    layouts: list[LatentLayout]
    figures: dict[str, float]
    token_weights: list[TokenWeights] | None


def choose(
    source: SourceCheckpoint,
    recipe: Recipe,
    converter: LayerConverter,
    load: Callable[[int], Any],
    windows: Windows,
    store: StatisticsStore,
    offload: Path | None,
    progress: Progress,
) -> Choices:
    """Widths of every layer, and how much tokens count in its refit.

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
    """
    config = source.config
    layers, heads, head_dim = (
        config.num_hidden_layers,
        config.num_key_value_heads,
        config.head_dim,
    )
    candidates = split_candidates(recipe, heads, head_dim)
    exact = len(candidates) == 1 and not recipe.spreads
    if exact and not recipe.weighs_tokens:
        return Choices(candidates * layers, {}, None)
    held_out = _held_out(windows)
    measured = exact or all(index in store for index in range(layers))
    streams = None if measured else embedded_text(source, windows.measured, None, offload)
    width, step = candidates[0].width, recipe.strategies()[0].step(heads, head_dim)
    grid = width_grid(width, heads * head_dim, step) if recipe.spreads else []
    token_weights: list[TokenWeights] | None = None
    costs: list[LayerCosts] = []
    if recipe.spreads or recipe.weighs_tokens:
        weights: list[TokenWeights] = []

        def visit(index: int, layer: Any, gradients: AttentionGradients) -> None:
            if recipe.spreads:
                costs.append(layer_costs(gradients, converter.candidates(layer, index, grid)))
            if recipe.weighs_tokens:
                weights.append(fit_token_weights(gradients.streams, gradients.gradients))

        backward_sweep(source, converter, load, streams, held_out, offload, progress, visit)
        streams = None
        token_weights = weights[::-1] if recipe.weighs_tokens else None
    if exact:
        return Choices(candidates * layers, {}, token_weights)
    if recipe.spreads:
        named = spread_over_layers(costs[::-1], width, step)
    else:
        named = {f"{w.kv_lora_rank}+{w.qk_rope_head_dim}": [w] * layers for w in candidates}
    different = [list(layouts) for layouts in dict.fromkeys(map(tuple, named.values()))]
    divergences = held_out_divergences(
        source, different, converter, load, streams, held_out, progress, offload
    )
    losses = {name: divergences[different.index(layouts)] for name, layouts in named.items()}
    # A candidate that overflows has no divergence, and is not the best.
    best = min(losses, key=lambda name: (math.isnan(losses[name]), losses[name]))
    logger.info("%s", _summary(best, named[best], losses[best]))
    figures = {f"held_out_divergence_{name}": loss for name, loss in losses.items()}
    return Choices(named[best], figures, token_weights)


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
        "The calibration text is too short to hold any of it out: what is chosen by held-out text "
        "is chosen by the text it is calibrated on. Give more --calibration text."
    )
    return windows.ids[-1:]
