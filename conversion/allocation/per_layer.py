"""Widths layer by layer: which to measure, and how a budget is spread."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from conversion.errors import RecipeError
from conversion.recipes.targets import WIDE, Target, is_offered
from vllm_mha2mla.config import LatentWidths

# Latent widths are chosen in these steps.
RANK_STEP = 4
# Cost below which a layer counts as exact: logarithms of measured zeros.
COST_FLOOR = 1e-9
# Cost of widths at which a layer overflows, nats: far above any that it could be measured at.
OVERFLOWED = 1e3
BISECTIONS = 60

LayerCosts = Mapping[LatentWidths, float]
"""Measured loss of one layer at some widths: a full grid of ranks and rotary widths."""


def allocate(
    costs: Sequence[LayerCosts],
    budget: int,
    rope_step: int = 2,
    power: float = 1,
    target: Target = "any",
) -> list[LatentWidths]:
    """Widths of every layer that lose least together within ``budget`` numbers per token.

        min  sum_i cost_i(rank_i, rope_i)^power   subject to   sum_i rank_i + rope_i <= budget

    Costs of layers converted alone add up where errors are small and independent. Where little is
    kept they are neither, and all layers together lose more than twice the sum. A power above 1
    makes one large loss dearer than several small ones.

    Each layer's cost is interpolated between its measured widths, linearly in its logarithm
    (errors fall about exponentially with width). One multiplier prices a number of cache the same
    in all layers; each layer takes what is best at that price, and the price is bisected until the
    budget is met. What rounding leaves over goes to the layers it helps most.

    Args:
        costs: of every layer alone, in nats.
        budget: numbers per token in all layers' caches together.
        rope_step: what the rotary strategy takes multiples of, as the measured widths are.
        power: of a layer's cost in the sum.
        target: where every layer's rows are to be fast.

    Raises:
        RecipeError: the budget is below the least widths of all layers.
    """
    tables = [_Table(layer, rope_step, power, target) for layer in costs]
    low, high = 1e-24, 1e6
    least = sum(table.choose(high).width for table in tables)
    if least > budget:
        raise RecipeError(
            f"a cache of {budget} numbers per token is below {least}, the least that can be "
            "spread over layers; give a larger cache_fraction, or spread: false"
        )
    for _ in range(BISECTIONS):
        price = (low * high) ** 0.5
        if sum(table.choose(price).width for table in tables) > budget:
            low = price
        else:
            high = price
    use_up = _use_up if target == "any" else _use_up_in_steps
    return use_up([table.choose(high) for table in tables], tables, budget)


def _use_up_in_steps(
    layer_widths: list[LatentWidths], tables: list["_Table"], budget: int
) -> list[LatentWidths]:
    """Spend what is left on wider rows that are offered, each where a number saves most."""
    left = budget - sum(widths.width for widths in layer_widths)
    while True:
        wider = [table.wider(w, left) for table, w in zip(tables, layer_widths, strict=True)]
        best = max(range(len(wider)), key=lambda layer: wider[layer][0])
        saving, widths = wider[best]
        if saving <= 0:
            return layer_widths
        left -= widths.width - layer_widths[best].width
        layer_widths = [*layer_widths[:best], widths, *layer_widths[best + 1 :]]


def _use_up(
    layer_widths: list[LatentWidths], tables: list["_Table"], budget: int
) -> list[LatentWidths]:
    """Spend what is left on latent columns, one at a time, where each saves most."""
    left = budget - sum(widths.width for widths in layer_widths)
    gains = [table.gain(widths) for table, widths in zip(tables, layer_widths, strict=True)]
    layer_widths = list(layer_widths)
    for _ in range(left):
        best = max(range(len(layer_widths)), key=gains.__getitem__)
        if gains[best] == 0:
            break
        layer_widths[best] = LatentWidths(
            layer_widths[best].kv_lora_rank + 1, layer_widths[best].qk_rope_head_dim
        )
        gains[best] = tables[best].gain(layer_widths[best])
    return layer_widths


class _Table:
    """One layer's costs on a fine grid of widths; infinite where the target offers none."""

    def __init__(self, costs: LayerCosts, rope_step: int, power: float, target: Target) -> None:
        ranks = sorted({widths.kv_lora_rank for widths in costs})
        ropes = sorted({widths.qk_rope_head_dim for widths in costs})
        logs = torch.tensor(
            [[_bounded(costs[LatentWidths(r, p)]) for r in ranks] for p in ropes],
            dtype=torch.float64,
        ).log()  # [ropes, ranks]
        # More cache never hurts; where a measurement says so it is noise.
        logs = logs.cummin(0).values.cummin(1).values
        self._rope_step = rope_step
        self._ranks = torch.arange(ranks[0], ranks[-1] + 1, RANK_STEP)
        self._ropes = torch.arange(ropes[0], ropes[-1] + 1, rope_step)
        if target != "any":
            # Every rank that can make up an offered row with some rotary width.
            widest = max(rank for rank, _ in WIDE)
            self._ranks = torch.arange(ranks[0], min(ranks[-1], widest) + 1)
        logs = _interpolate(logs, torch.tensor(ranks), self._ranks)
        logs = _interpolate(logs.T, torch.tensor(ropes), self._ropes).T
        self._cost = (power * logs).exp()  # [fine ropes, fine ranks]
        self._width = self._ropes[:, None] + self._ranks[None]
        offered = is_offered(self._ranks[None], self._ropes[:, None], target)
        self._cost = torch.where(torch.as_tensor(offered), self._cost, math.inf)

    def choose(self, price: float) -> LatentWidths:
        """The widths of least cost plus ``price`` per number of cache."""
        flat = int((self._cost + price * self._width).argmin())
        rope, rank = divmod(flat, len(self._ranks))
        return LatentWidths(int(self._ranks[rank]), int(self._ropes[rope]))

    def wider(self, widths: LatentWidths, left: int) -> tuple[float, LatentWidths]:
        """The saving, per number, of the best wider row within what is left; 0 if there is none."""
        row = (widths.qk_rope_head_dim - int(self._ropes[0])) // self._rope_step
        saved = self._cost[row, widths.kv_lora_rank - int(self._ranks[0])] - self._cost
        more = self._width - widths.width
        saving = torch.where((more > 0) & (more <= left), saved / more, 0)
        flat = int(saving.argmax())
        rope, rank = divmod(flat, len(self._ranks))
        best = LatentWidths(int(self._ranks[rank]), int(self._ropes[rope]))
        return float(saving.flatten()[flat]), best

    def gain(self, widths: LatentWidths) -> float:
        """The saving of one more latent column, by the slope of the fine grid; 0 at its end."""
        row = (widths.qk_rope_head_dim - int(self._ropes[0])) // self._rope_step
        column = (widths.kv_lora_rank - int(self._ranks[0])) // RANK_STEP
        if column + 1 >= len(self._ranks):
            return 0.0
        return float(self._cost[row, column] - self._cost[row, column + 1]) / RANK_STEP


def _bounded(cost: float) -> float:
    return max(cost, COST_FLOOR) if math.isfinite(cost) else OVERFLOWED


def _interpolate(values: Tensor, at: Tensor, to: Tensor) -> Tensor:
    """Piecewise linear along the last axis  # [n, len(at)] -> [n, len(to)]"""
    if len(at) == 1:
        return values.expand(-1, len(to))
    right = torch.searchsorted(at, to).clamp(1, len(at) - 1)
    share = (to - at[right - 1]) / (at[right] - at[right - 1])
    return values[:, right - 1] * (1 - share) + values[:, right] * share


# Powers of layers' costs whose sum is made small: the smaller the cache, the larger the best.
POWERS = (1.0, 1.5, 2.0)
# Measured widths, as parts of the mean width a layer may have. No layer gets more than the last:
# of a small budget, some layers want twice the mean and others next to nothing.
ROPE_PARTS = (0.0, 0.3, 0.55, 0.8)
RANK_PARTS = (0.02, 0.12, 0.5, 1.05, 1.55, 2.1)
# Of a large one no layer wants that much. Parts of the source's keys at which the widths end, but
# not below the third rotary and the fourth latent width: measuring wider ones takes memory.
MOST_ROPE, MOST_RANK = 0.6, 1.25


def width_grid(width: int, kv_dim: int, step: int) -> list[LatentWidths]:
    """The widths to measure for a mean width per layer: every rank with every rotary width.

    Args:
        width: mean numbers per token and layer that the budget allows.
        kv_dim: numbers of the source's keys, ``kv_heads * head_dim``.
        step: what the rotary strategy takes multiples of.
    """
    most_rope = min(kv_dim, max(width * ROPE_PARTS[2], kv_dim * MOST_ROPE))
    most_rank = min(2 * kv_dim, max(width * RANK_PARTS[3], kv_dim * MOST_RANK))
    parts = (min(width * part, most_rope) for part in ROPE_PARTS)
    ropes = sorted({min(kv_dim // step, round(rope / step)) * step for rope in parts})
    ranks = sorted({max(1, round(min(width * part, most_rank))) for part in RANK_PARTS})
    return [LatentWidths(rank, rope) for rope in ropes for rank in ranks]


def spread_over_layers(
    costs: Sequence[LayerCosts], width: int, step: int, target: Target = "any"
) -> dict[str, list[LatentWidths]]:
    """Widths of every layer, ``width`` numbers on average, that should lose least.

    Args:
        costs: of every layer at the widths of ``width_grid``.
        width: mean numbers per token and layer.
        step: what the rotary strategy takes multiples of.
        target: where every layer's rows are to be fast.

    Returns:
        for each of ``POWERS``, the widths of every layer.
    """
    budget = width * len(costs)
    return {f"power_{power:g}": allocate(costs, budget, step, power, target) for power in POWERS}
