"""The choice of widths and bits of every layer for one number of bytes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from coded_latents_parts.codebooks import gaussian_codebook
from coded_latents_parts.measure import Candidate
from coded_latents_parts.rows import SCALE_BITS, SCALES

# A component always has a bit: what is missing in every row costs far more than the metric of
# single rows tells, which is that of errors that differ from row to row.
BITS = (1, 2, 3, 4, 5, 6)
# All layers together lose more than the sum of what each loses alone.
POWER = 1.5
ROUNDS, HALVINGS = 4, 24


@dataclass(frozen=True)
class LayerPlan:
    """The choice for one layer.

    Attributes:
        candidate: the widths, with what they were chosen by.
        bits: of every component  # [rank + rope]
        cost: predicted, in nats per token.
    """

    candidate: Candidate
    bits: Tensor
    cost: float

    @property
    def row_bits(self) -> int:
        """The size of a coded row, its scales included."""
        return int(self.bits.sum()) + SCALES * SCALE_BITS


def plan(layers: Sequence[Sequence[Candidate]], row_bits: float) -> list[LayerPlan]:
    """Spread bits over layers, widths and components: water filling at one bit and more.

        min  sum_l c_l^1.5    c_l = truncation_l + sum_j lambda_j D(b_j) / 2    b_j in BITS

    under ``sum_l (sum_j b_j + 16) <= row_bits`` a layer on average. ``lambda_j`` is what component
    ``j`` of layer ``l`` costs if it is lost, twice over; ``D(b)`` is the squared error of a unit
    Gaussian in ``b`` bits; 16 bits are the two scales. At a price of a bit, every component and
    every layer chooses for itself; the price is halved in on until the bytes are used. The power
    makes a bit of layer ``l`` worth ``c_l^0.5`` more, which depends on the choice: a few rounds
    settle it.

    Args:
        layers: the choices of each layer.
        row_bits: bits of a row that a layer may have, on average.
    """
    weights = [1.0] * len(layers)
    for _ in range(ROUNDS):
        low, high = math.log(1e-12), 0.0
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            chosen = _at_price(layers, math.exp(middle), weights)
            if sum(layer.row_bits for layer in chosen) > row_bits * len(layers):
                low = middle
            else:
                high = middle
        chosen = _at_price(layers, math.exp(high), weights)
        mean = sum(layer.cost for layer in chosen) / len(layers)
        weights = [
            math.sqrt(weight * (layer.cost / mean) ** (POWER - 1))
            for weight, layer in zip(weights, chosen, strict=True)
        ]
    return chosen


def _at_price(
    layers: Sequence[Sequence[Candidate]], price: float, weights: Sequence[float]
) -> list[LayerPlan]:
    """The best choice of every layer if a bit costs ``price`` weighted nats."""
    distortion = torch.tensor([gaussian_codebook(b).distortion for b in BITS])
    of_choice = torch.tensor(BITS)
    chosen = []
    for candidates, weight in zip(layers, weights, strict=True):
        plans = []
        for candidate in candidates:
            costs = candidate.components[:, None] * distortion / 2  # [rank + rope, choices]
            choice = (costs + price / weight * of_choice).argmin(1)  # [rank + rope]
            cost = candidate.truncation + float(costs.gather(1, choice[:, None]).sum())
            plans.append(LayerPlan(candidate, of_choice[choice], cost))
        chosen.append(min(plans, key=lambda p: p.cost + price / weight * p.row_bits))
    return chosen
