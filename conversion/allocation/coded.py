"""Widths and bits of coded rows, chosen together for every layer by a number of bytes."""

import logging
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from conversion.allocation.coded_widths import WidthGrid
from conversion.allocation.sensitivity import AttentionGradients, layer_costs
from conversion.coding.gradients import KeyValueGradients, key_value_gradients
from conversion.coding.plan import LayerPlan, plan
from conversion.coding.row_maps import RowMaps
from conversion.coding.row_statistics import RowStatistics
from conversion.coding.units import Candidate, LayerChoices, candidate, layer_choices
from conversion.layers.converter import LayerConverter
from conversion.recipes.recipe import Recipe
from conversion.runtime.numbers import span
from vllm_mha2mla.config import LatentWidths
from vllm_mha2mla.hf.attention import LatentAttention

# Held-out windows that the loss of narrower rows is measured on: every candidate passes over them.
WINDOWS = 2
# Cost below which a layer counts as exact: logarithms of measured zeros, or of an overflow.
LEAST, MOST = 1e-9, 1e3

logger = logging.getLogger(__name__)


class CodedChoices:
    """The choices of every layer, collected as a backward sweep passes by.

    Args:
        recipe: what to make; its rows are coded.
        converter: of this recipe. The metric of every layer's rows goes to its store.
        grid: the widths to choose from.
    """

    def __init__(self, recipe: Recipe, converter: LayerConverter, grid: WidthGrid) -> None:
        assert recipe.row_bits is not None
        self._bits, self._converter, self._grid = recipe.row_bits, converter, grid
        self._choices: dict[int, LayerChoices] = {}

    def visit(self, index: int, layer: Any, found: AttentionGradients) -> None:
        """Measure one layer.

        Args:
            index: which layer it is.
            layer: as the converter's layers load it; its MLP is not needed.
            found: its attention on held-out text, and the gradients there.
        """
        layers = self._converter.layers
        weights = layers.attention_weights(layer)
        inputs = [layers.inputs(layer, normed) for normed in found.inputs]
        gradients = key_value_gradients(weights, inputs, found.gradients)
        measured = AttentionGradients(
            found.inputs[:WINDOWS],
            found.outputs[:WINDOWS],
            found.streams[:WINDOWS],
            found.gradients[:WINDOWS],
        )
        candidates: list[Candidate] = []
        for rope in self._grid.ropes:
            candidates += self._of_rope(index, layer, rope, gradients, measured)
        self._choices[index] = layer_choices(candidates, self._bits)

    def _of_rope(
        self,
        index: int,
        layer: Any,
        rope: int,
        gradients: KeyValueGradients,
        measured: AttentionGradients,
    ) -> list[Candidate]:
        """The choices with so many rotary columns."""
        grid, converter = self._grid, self._converter
        statistics: list[RowStatistics] = []

        def attentions() -> Iterator[tuple[LatentWidths, LatentAttention]]:
            # The widest first: its rows are those that statistics are of.
            widths = [LatentWidths(rank, rope) for rank in reversed(grid.measured_ranks(rope))]
            for one, attention, maps in converter.candidates_with_maps(layer, index, widths):
                if not statistics:
                    statistics.append(self._statistics(index, maps, gradients))
                yield one, attention
                del attention, maps

        costs = layer_costs(measured, attentions(), converter.layers.at_once)
        measured_ranks = grid.measured_ranks(rope)
        logs = [math.log(_bounded(costs[LatentWidths(rank, rope)])) for rank in measured_ranks]
        # More cache never hurts; where a measurement says so it is noise.
        logs = list(np.minimum.accumulate(logs))
        return [
            candidate(statistics[0], rank, math.exp(np.interp(rank, measured_ranks, logs)))
            for rank in grid.ranks(rope)
        ]

    def _statistics(self, index: int, maps: RowMaps, gradients: KeyValueGradients) -> RowStatistics:
        metric = maps.metric(gradients)
        store = self._converter.measurements.store
        store.put_metric(index, maps.query_rope.shape[1], metric)
        mean, covariance = self._converter.measurements.load(index).of_later_tokens()
        return maps.statistics(metric, mean, covariance)

    def plan(self, budget: int | None, alike: bool = False) -> list[LayerPlan]:
        """The choice of every measured layer, from the first to the last.

        Args:
            budget: bytes of a token's rows in all layers; ``None``: as many as they take.
            alike: give every layer its share of the budget, and no layer more.
        """
        choices = [self._choices[index] for index in sorted(self._choices)]
        if budget is None:
            budget = sum(one.most_bytes for one in choices)
        if alike:
            planned = [plan([one], budget // len(choices))[0] for one in choices]
        else:
            planned = plan(choices, budget)
        logger.info("%s", _summary(planned))
        return planned


def _bounded(cost: float) -> float:
    return min(max(cost, LEAST), MOST) if math.isfinite(cost) else MOST


def _summary(planned: Sequence[LayerPlan]) -> str:
    ranks = span([one.code.widths.kv_lora_rank for one in planned])
    ropes = span([one.code.widths.qk_rope_head_dim for one in planned])
    columns = sum(one.code.widths.width for one in planned)
    bits = sum(8 * sum(one.code.unit_bits) for one in planned) / columns
    rows = sum(one.code.row_bytes for one in planned) / len(planned)
    return (
        f"kv_lora_rank {ranks}, qk_rope_head_dim {ropes}, {bits:.2f} bits a number on average: "
        f"{rows:.1f} bytes per token and layer"
    )
