"""The input and the result of a low-rank strategy, and how one is registered."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from conversion.calibration.statistics import LayerStatistics
from conversion.families import AttentionWeights
from conversion.rotary.selection import RotarySelection


@dataclass(frozen=True)
class LatentTarget:
    """The maps to approximate together, both from the layer's input; float64.

    Attributes:
        key: keys left without rotation, all KV heads  # [kv_heads * d, inputs]
        value: values, all KV heads  # [kv_heads * d, inputs]
        metric: ``M``, the cost of errors of keys and values together
            # [2 * kv_heads * d, 2 * kv_heads * d]
        covariance: of the layer's input, weighted by attention received  # [inputs, inputs]
        token_moment: ``E[x x^T]`` of the layer's input, uncentred, every token alike; the
            published methods use it  # [inputs, inputs]
    """

    key: Tensor
    value: Tensor
    metric: Tensor
    covariance: Tensor
    token_moment: Tensor


@dataclass(frozen=True)
class LatentFactors:
    """``key ~ key_up @ down`` and ``value ~ value_up @ down``; float64.

    Attributes:
        down: input to latent  # [rank, inputs]
        key_up: latent to keys  # [kv_heads * d, rank]
        value_up: latent to values  # [kv_heads * d, rank]
        centred: whether the values' mean error leaves through the output bias.
    """

    down: Tensor
    key_up: Tensor
    value_up: Tensor
    centred: bool

    def truncated(self, rank: int) -> "LatentFactors":
        """The first ``rank`` components: what a nested method makes at that rank."""
        return LatentFactors(
            self.down[:rank], self.key_up[:, :rank], self.value_up[:, :rank], self.centred
        )


LatentStrategy = Callable[[LatentTarget, int], LatentFactors]
"""``strategy(target, kv_lora_rank)``."""


@dataclass(frozen=True)
class LatentMethod:
    """A registered strategy, called as the strategy itself.

    Attributes:
        factorise: the strategy.
        reference: where it is described, such as ``arXiv:2502.14837``.
        nested: whether the factors of a lower rank are the first components of those of a higher
            one.
    """

    factorise: LatentStrategy
    reference: str
    nested: bool = False

    def __call__(self, target: LatentTarget, rank: int) -> LatentFactors:
        """``factorise(target, rank)``."""
        return self.factorise(target, rank)


def latent_target(
    weights: AttentionWeights,
    statistics: LayerStatistics,
    selection: RotarySelection,
    key_weight: float,
) -> LatentTarget:
    """Keys and values to compress, in one metric.

    An error ``e`` of a token's unrotated keys and values moves a combination ``r`` of the attention
    output by ``g . e``, to first order, so ``e^T M e`` with ``M = E g g^T`` is the squared error of
    the output, over all its dimensions and all queries. A key of KV head ``g`` is read by all query
    heads of its group, each through its own map ``query_nope``.
    """
    return LatentTarget(
        key=selection.key_nope @ weights.key.double().flatten(0, 1),
        value=weights.value.double().flatten(0, 1),
        metric=_metric(weights, statistics, selection, key_weight),
        covariance=statistics.input_covariance,
        token_moment=statistics.token_moment,
    )


def _metric(
    weights: AttentionWeights,
    statistics: LayerStatistics,
    selection: RotarySelection,
    key_weight: float,
) -> Tensor:
    """Gradients of query heads mapped and added up to those of KV heads, on both sides"""
    kv_heads, d, _ = weights.key.shape
    heads = len(weights.query)
    N = (selection.query_nope * key_weight**0.5).float()  # [heads, d, d]

    def folded(rows: Tensor) -> Tensor:
        """[(heads + kv_heads) * d, n] -> [2 * kv_heads * d, n]"""
        keys = N @ rows[: heads * d].view(heads, d, -1)  # [heads, d, n]
        keys = keys.view(kv_heads, -1, d, keys.shape[-1]).sum(1).flatten(0, 1)
        return torch.cat((keys, rows[heads * d :]))

    # In float32, as it was measured, for the width of all heads; what is left is smaller.
    return folded(folded(statistics.gradient_moment).T).double()
