"""Decisions on held-out text: cache widths of every layer, and token weights of its refit."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from torch import Tensor

from conversion.allocation.backward import backward_sweep
from conversion.allocation.candidates import held_out_divergences
from conversion.allocation.coded import CodedChoices
from conversion.allocation.coded_widths import byte_budget
from conversion.allocation.coded_widths import width_grid as coded_width_grid
from conversion.allocation.per_layer import LayerCosts, spread_over_layers, width_grid
from conversion.allocation.sensitivity import AttentionGradients, layer_costs
from conversion.allocation.uniform import split_candidates
from conversion.calibration.activations import Activations
from conversion.calibration.streams import embedded_text
from conversion.layers.converter import LayerConverter
from conversion.layers.token_weights import TokenWeights, equal_weights, fit_token_weights
from conversion.recipes.recipe import Recipe
from conversion.recipes.widths import mean_width
from conversion.runtime.numbers import span
from conversion.runtime.parallel import side_by_side
from conversion.runtime.progress import Progress
from conversion.text.windows import Windows
from vllm_mha2mla.coding.row_code import RowCode
from vllm_mha2mla.config import KEPT, LatentWidths

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Choices:
    """The decisions made before layers are converted.

    Attributes:
        layer_widths: cache widths of every layer.
        figures: the divergence of each candidate on held-out text, nats.
        token_weights: how much tokens count in the refit of every layer.
        codes: of every layer's rows; ``None`` where rows are not coded.
    """

    layer_widths: list[LatentWidths]
    figures: dict[str, float]
    token_weights: list[TokenWeights]
    codes: list[RowCode] | None = None


def choose(
    recipe: Recipe,
    converter: LayerConverter,
    windows: Windows,
    offload: Path | None,
    progress: Progress,
) -> Choices:
    """Widths of every layer, and how much tokens count in its refit.

    Exact widths are taken as they are. A budget is spread over layers, or split the same way in
    all layers, by what is lost on text held out from calibration: one width more than the other
    never costs a byte more.

    Args:
        recipe: what to make.
        converter: of this recipe.
        windows: the calibration text and what is held out of it.
        offload: folder for activations; ``None``: memory.
        progress: told about every layer.
    """
    config, kept = converter.layers.source.config, converter.layers.kept
    layers, heads, head_dim = (
        config.num_hidden_layers,
        config.num_key_value_heads,
        config.head_dim,
    )
    in_all = converter.layers.in_all
    if recipe.row_bits is not None:
        return _choose_coded(recipe, converter, windows, offload, progress)
    candidates = split_candidates(recipe, heads, head_dim)
    # Beside kept layers a cache gives all others as much as the widest takes.
    spreads = recipe.spreads and not kept
    exact = len(candidates) == 1 and not spreads
    swept = spreads or recipe.weighs_tokens
    if exact and not swept:
        token_weights = [equal_weights(config.hidden_size)] * layers
        return Choices(in_all(candidates[0]), {}, token_weights)
    held_out = _held_out(windows)
    text = None if exact else _text_to_measure(converter, windows, offload)
    width, step = candidates[0].width, recipe.strategies()[0].step(heads, head_dim)
    if recipe.kv_lora_rank is None:
        allowed = mean_width(recipe, heads, head_dim)
        # Layers of several widths use up what one width for all leaves over.
        width = allowed if spreads else width
        if width < allowed:
            logger.info(
                "%d numbers per token and layer, of %d allowed: %s offers no width between",
                width,
                allowed,
                recipe.target,
            )
    grid = width_grid(width, heads * head_dim, step) if spreads else []
    gradients = _OfGradients(recipe, converter, grid, config.hidden_size, layers)
    if swept:
        backward_sweep(converter, text, held_out, offload, progress, gradients.visit)
        text = None
    if exact:
        return Choices(in_all(candidates[0]), {}, gradients.token_weights)
    if spreads:
        named = spread_over_layers(gradients.costs, width, step, recipe.target)
    else:
        named = {f"{w.kv_lora_rank}+{w.qk_rope_head_dim}": in_all(w) for w in candidates}
    different = [list(layer_widths) for layer_widths in dict.fromkeys(map(tuple, named.values()))]
    divergences = held_out_divergences(different, converter, text, held_out, progress, offload)
    losses = {
        name: divergences[different.index(layer_widths)] for name, layer_widths in named.items()
    }
    # A candidate that overflows has no divergence, and is not the best.
    best = min(losses, key=lambda name: (math.isnan(losses[name]), losses[name]))
    logger.info("%s", _summary(best, named[best], losses[best]))
    figures = {f"held_out_divergence_{name}": loss for name, loss in losses.items()}
    return Choices(named[best], figures, gradients.token_weights)


def _choose_coded(
    recipe: Recipe,
    converter: LayerConverter,
    windows: Windows,
    offload: Path | None,
    progress: Progress,
) -> Choices:
    config, kept = converter.layers.source.config, converter.layers.kept
    layers = config.num_hidden_layers
    shape = config.num_key_value_heads, config.head_dim
    hidden = converter.layers.family.input_width(config)
    coded = CodedChoices(recipe, converter, coded_width_grid(recipe, *shape, hidden))
    token_weights = [equal_weights(config.hidden_size)] * layers
    text = _text_to_measure(converter, windows, offload)

    def visit(index: int, layer: Any, found: AttentionGradients) -> None:
        if index in kept:
            return
        coded.visit(index, layer, found)
        if recipe.weighs_tokens:
            token_weights[index] = fit_token_weights(found.streams, found.gradients)

    backward_sweep(converter, text, _held_out(windows), offload, progress, visit)
    planned = coded.plan(byte_budget(recipe, *shape, layers - len(kept)), alike=bool(kept))
    codes = converter.layers.with_kept([one.code for one in planned], RowCode(KEPT, ()))
    return Choices([code.widths for code in codes], {}, token_weights, codes)


def _text_to_measure(
    converter: LayerConverter, windows: Windows, offload: Path | None
) -> Activations | None:
    """The embedded calibration text; ``None`` if the store has the statistics of all layers."""
    source, device = converter.layers.source, converter.layers.device
    if converter.measurements.complete:
        return None
    return embedded_text(source, windows.measured, None, offload, device).original


class _OfGradients:
    """Costs and token weights of every layer, collected as a backward sweep passes by.

    Attributes:
        costs: of every layer at the widths of the grid; empty where that is empty.
        token_weights: of every layer; equal ones where tokens are not weighed.
    """

    def __init__(
        self,
        recipe: Recipe,
        converter: LayerConverter,
        grid: Sequence[LatentWidths],
        hidden: int,
        layers: int,
    ) -> None:
        self._recipe, self._converter, self._grid = recipe, converter, grid
        self.costs: list[LayerCosts] = [{} for _ in range(layers)]
        self.token_weights = [equal_weights(hidden) for _ in range(layers)]

    def visit(self, index: int, layer: Any, found: AttentionGradients) -> None:
        if index in self._converter.layers.kept:
            return
        if self._grid:
            layers = self._converter.layers

            def costs(grid: list[LatentWidths]) -> dict[LatentWidths, float]:
                converted = self._converter.candidates(layer, index, grid)
                return layer_costs(found, converted, layers.at_once)

            # One selection serves all ranks at its rotary width. Of a large layer, one candidate
            # is in memory at a time; and a GPU does one thing at a time, each in all its parts.
            by_rope = groupby(self._grid, key=lambda widths: widths.qk_rope_head_dim)
            grids = [list(grid) for _, grid in by_rope]
            at_most = 1 if layers.at_once == 1 or layers.device.type != "cpu" else None
            self.costs[index] = {
                widths: cost
                for part in side_by_side(costs, grids, at_most)
                for widths, cost in part.items()
            }
        if self._recipe.weighs_tokens:
            self.token_weights[index] = fit_token_weights(found.streams, found.gradients)


def _summary(name: str, layer_widths: list[LatentWidths], loss: float) -> str:
    latent = [widths for widths in layer_widths if not widths.kept]
    ranks = span([widths.kv_lora_rank for widths in latent])
    ropes = span([widths.qk_rope_head_dim for widths in latent])
    return (
        f"kv_lora_rank {ranks}, qk_rope_head_dim {ropes} ({name}): {loss:.4f} nats lost per token "
        "of held-out text, before any refit"
    )


def _held_out(windows: Windows) -> Tensor:
    if len(windows.held_out):
        return windows.held_out
    logger.warning(
        "The calibration text is too short to hold any of it out: what is chosen by held-out text "
        "is chosen by the text it is calibrated on. Give more --calibration text."
    )
    return windows.ids[-1:]
