"""Widths and bits of every layer for one number of bytes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from conversion.coding.units import LayerChoices
from vllm_mha2mla.coding.row_code import SCALES, RowCode

# All layers together lose more than the sum of what each loses alone.
POWER = 1.5
# The power's weights follow from the choice: so many rounds settle them.
ROUNDS, HALVINGS = 4, 40
LEAST_PRICE, MOST_PRICE = 1e-15, 1e9
TINY = 1e-12


@dataclass(frozen=True)
class LayerPlan:
    """The choice for one layer.

    Attributes:
        code: widths and bits of the cache's rows.
        cost: predicted, in nats per token.
    """

    code: RowCode
    cost: float


def plan(layers: Sequence[LayerChoices], budget: int) -> list[LayerPlan]:
    """Spread bytes over layers, widths and columns: water filling at one bit and more.

        min  sum_l c_l^1.5        c_l = truncation_l + sum_j lambda_j D(b_j) / 2

    under ``sum_l bytes_l <= budget``. ``lambda_j`` is what column ``j`` of layer ``l`` costs if it
    is lost, twice over, and ``D(b)`` the squared error of a unit Gaussian in ``b`` bits
    (``units.py``). Every column that is kept has a bit at least: what is missing in every row costs
    far more than the metric of single rows tells.

    At a price of a byte every unit of columns and every layer chooses for itself; the price is
    halved in on until the bytes are used, and what rounding leaves goes where it helps most. The
    power makes a byte of layer ``l`` worth ``c_l^0.5`` times as much, which depends on the choice:
    a few rounds settle it.

    Args:
        layers: the choices of each layer.
        budget: bytes of a token's rows in all layers.
            The narrowest rows at the fewest bits are always possible.
    """
    weights = [1.0] * len(layers)
    for _ in range(ROUNDS):
        chosen = _within(layers, budget, weights)
        costs = [max(TINY, choice.cost) for choice in chosen]
        mean = sum(costs) / len(costs)
        weights = [
            math.sqrt(weight * (cost / mean) ** (POWER - 1))
            for weight, cost in zip(weights, costs, strict=True)
        ]
    chosen = _use_up(chosen, budget, weights)
    return [LayerPlan(choice.row_code, choice.cost) for choice in chosen]


@dataclass(frozen=True)
class _Choice:
    """A layer's candidate and the bits of its units, by their place in ``layer.bits``."""

    layer: LayerChoices
    candidate: int
    units: Tensor  # [units]

    @property
    def nbytes(self) -> int:
        bits = torch.tensor(self.layer.bits)[self.units]
        return int((bits * self.layer.sizes[self.candidate]).sum()) + SCALES

    @property
    def cost(self) -> float:
        costs = self.layer.costs[self.candidate].gather(1, self.units[:, None])
        return float(self.layer.truncation[self.candidate] + costs.sum())

    @property
    def row_code(self) -> RowCode:
        return self.layer.row_code(self.candidate, self.units)


def _within(layers: Sequence[LayerChoices], budget: int, weights: Sequence[float]) -> list[_Choice]:
    """The choices at the lowest price that keeps to the budget."""
    low, high = math.log(LEAST_PRICE), math.log(MOST_PRICE)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        chosen = _at_price(layers, math.exp(middle), weights)
        if sum(choice.nbytes for choice in chosen) > budget:
            low = middle
        else:
            high = middle
    return _at_price(layers, math.exp(high), weights)


def _at_price(
    layers: Sequence[LayerChoices], price: float, weights: Sequence[float]
) -> list[_Choice]:
    """The best choice of every layer if a byte costs ``price`` weighted nats."""
    chosen = []
    for layer, weight in zip(layers, weights, strict=True):
        bits = torch.tensor(layer.bits, dtype=layer.costs.dtype)
        paid = price / weight * layer.sizes[..., None] * bits  # [candidates, units, bits]
        priced, units = (layer.costs + paid).min(-1)  # [candidates, units]
        candidate = int((layer.truncation + priced.sum(-1)).argmin())
        chosen.append(_Choice(layer, candidate, units[candidate]))
    return chosen


def _use_up(chosen: Sequence[_Choice], budget: int, weights: Sequence[float]) -> list[_Choice]:
    """Give units more bits, one after the other, where a byte saves most."""
    chosen = list(chosen)
    left = budget - sum(choice.nbytes for choice in chosen)
    gains = [_gain(choice, weight, left) for choice, weight in zip(chosen, weights, strict=True)]
    while True:
        best = max(range(len(gains)), key=lambda index: gains[index][0])
        gain, unit, more = gains[best]
        if gain <= 0:
            return chosen
        if more <= left:
            units = chosen[best].units.clone()
            units[unit] += 1
            chosen[best] = _Choice(chosen[best].layer, chosen[best].candidate, units)
            left -= more
        gains[best] = _gain(chosen[best], weights[best], left)


def _gain(choice: _Choice, weight: float, left: int) -> tuple[float, int, int]:
    """The most that a byte saves in a layer, the unit it goes to, and the bytes that this takes."""
    layer, units = choice.layer, choice.units
    bits, costs = torch.tensor(layer.bits), layer.costs[choice.candidate]
    following = (units + 1).clamp_max(len(bits) - 1)
    more = (bits[following] - bits[units]) * layer.sizes[choice.candidate]  # [units]
    saved = (costs.gather(1, units[:, None]) - costs.gather(1, following[:, None]))[:, 0]
    fits = (more > 0) & (more <= left)
    gains = torch.where(fits, weight * saved / more.clamp_min(1), 0)
    unit = int(gains.argmax())
    return float(gains[unit]), unit, int(more[unit])
