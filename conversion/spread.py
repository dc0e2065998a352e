"""Layer by layer widths for a budget: which to measure, and several ways to allocate it."""

from collections.abc import Sequence

from conversion.allocation import LayerCosts, allocate
from vllm_mha2mla.config import LatentLayout

# Powers of layers' costs whose sum is made small: the smaller the cache, the larger the best.
POWERS = (1.0, 1.5, 2.0)
# Measured widths, as parts of the mean width a layer may have. No layer gets more than the last:
# of a small budget, some layers want twice the mean and others next to nothing.
ROPE_PARTS = (0.0, 0.3, 0.55, 0.8)
RANK_PARTS = (0.02, 0.12, 0.5, 1.05, 1.55, 2.1)
# Of a large one no layer wants that much. Parts of the source's keys at which the widths end, but
# not below the third rotary and the fourth latent width: measuring wider ones takes memory.
MOST_ROPE, MOST_RANK = 0.6, 1.25


def width_grid(width: int, one_side: int, step: int) -> list[LatentLayout]:
    """The widths to measure for a mean width per layer: every rank with every rotary width.

    Args:
        width: mean numbers per token and layer that the budget allows.
        one_side: numbers of the source's keys, ``kv_heads * head_dim``.
        step: what the rotary strategy takes multiples of.
    """
    most_rope = min(one_side, max(width * ROPE_PARTS[2], one_side * MOST_ROPE))
    most_rank = min(2 * one_side, max(width * RANK_PARTS[3], one_side * MOST_RANK))
    parts = (min(width * part, most_rope) for part in ROPE_PARTS)
    ropes = sorted({min(one_side // step, round(rope / step)) * step for rope in parts})
    ranks = sorted({max(1, round(min(width * part, most_rank))) for part in RANK_PARTS})
    return [LatentLayout(rank, rope) for rope in ropes for rank in ranks]


def spread_over_layers(
    costs: Sequence[LayerCosts], width: int, step: int
) -> dict[str, list[LatentLayout]]:
    """Widths of every layer, ``width`` numbers on average, that should lose least.

    Args:
        costs: of every layer at the widths of ``width_grid``.
        width: mean numbers per token and layer.
        step: what the rotary strategy takes multiples of.

    Returns:
        for each of ``POWERS``, the layout of every layer.
    """
    budget = width * len(costs)
    return {f"power_{power:g}": allocate(costs, budget, step, power) for power in POWERS}
