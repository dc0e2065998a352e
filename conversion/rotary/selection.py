"""The result of a rotary strategy: linear maps of a layer's queries and keys before rotation."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from conversion.calibration.statistics import LayerStatistics
from conversion.families import AttentionWeights


@dataclass(frozen=True)
class RotarySelection:
    """A partial-RoPE attention that scores

        (query_rope q) . R(m - n) (key_rope k)  +  (query_nope q) . (key_nope k)

    with ``k`` the keys of all KV heads side by side. Everything float64.

    Attributes:
        inv_freq: frequency of each kept pair  # [rope/2]
        key_rope: shared rotary key of all heads  # [rope, kv_heads * d]
        query_rope: each head's rotary query  # [heads, rope, d]
        key_nope: what is left of the keys, without rotation  # [kv_heads * d, kv_heads * d]
        query_nope: each head's query for it  # [heads, d, d]
    """

    inv_freq: Tensor
    key_rope: Tensor
    query_rope: Tensor
    key_nope: Tensor
    query_nope: Tensor


RotaryStrategy = Callable[[AttentionWeights, LayerStatistics, int], RotarySelection]
"""``strategy(weights, statistics, rope_dim)`` with ``rope_dim`` an even number of dimensions."""

RopeStep = Callable[[int, int], int]
"""``step(kv_heads, head_dim)``: a strategy takes the multiples of this as ``rope_dim``."""


def every_pair(kv_heads: int, head_dim: int) -> int:
    """The step of a strategy that keeps any number of pairs."""
    return 2


RopeWidths = Callable[[int, int], Sequence[int]]
"""``widths(kv_heads, head_dim)``: values of ``rope_dim``."""


def none_better(kv_heads: int, head_dim: int) -> Sequence[int]:
    """No preferred widths: every accepted ``rope_dim`` suits the strategy equally."""
    return ()


@dataclass(frozen=True)
class RotaryMethod:
    """A registered strategy, called as the strategy itself.

    Attributes:
        choose: the strategy.
        reference: where it is described, such as ``arXiv:2502.14837``.
        step: gives the number whose multiples it accepts as ``rope_dim``.
        favoured: gives values of ``rope_dim`` that suit it better than others near them.
    """

    choose: RotaryStrategy
    reference: str
    step: RopeStep = every_pair
    favoured: RopeWidths = none_better

    def __call__(
        self, weights: AttentionWeights, statistics: LayerStatistics, rope_dim: int
    ) -> RotarySelection:
        """``choose(weights, statistics, rope_dim)``."""
        return self.choose(weights, statistics, rope_dim)


def pair_power(moment: Tensor) -> Tensor:
    """``E|u[f]|^2`` from ``E[q q^T]``  # [heads, d, d] -> [heads, d/2]"""
    real, imaginary = moment.diagonal(dim1=-2, dim2=-1).chunk(2, dim=-1)
    return real + imaginary


def complex_rows(coefficients: Tensor) -> Tensor:
    """Real form of complex-linear forms on rotary pairs.

    A complex number c acts on the pair (x[f], x[f + d/2]) as the matrix [[Re, -Im], [Im, Re]].

    Args:
        coefficients: one form per row, on the pairs of every head  # [..., rows, heads, d/2]

    Returns:
        real parts of all forms, then imaginary parts  # [..., 2 * rows, heads * d]
    """
    real, imaginary = coefficients.real, coefficients.imag
    upper = torch.cat((real, -imaginary), dim=-1)  # [..., rows, heads, d]
    lower = torch.cat((imaginary, real), dim=-1)
    return torch.cat((upper, lower), dim=-3).flatten(-2)
