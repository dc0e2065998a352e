"""What a low-rank strategy is given, and what it returns."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from conversion.calibration.statistics import AttentionWeights, LayerStatistics
from conversion.rotary import RotarySelection


@dataclass(frozen=True)
class LatentTarget:
    """The maps to approximate together, both from the layer's input; float64.

    Attributes:
        key: keys left without rotation, all KV heads  # [kv_heads * d, hidden]
        value: values, all KV heads  # [kv_heads * d, hidden]
        key_metric: ``M_K``, what a key error costs, per KV head  # [kv_heads, d, d]
        value_metric: ``M_V``, what a value error costs, per KV head  # [kv_heads, d, d]
        covariance: of the layer's input, weighted by attention received  # [hidden, hidden]
        token_moment: ``E[x x^T]`` of the layer's input, uncentred, every token alike; what
            published methods take  # [hidden, hidden]
    """

    key: Tensor
    value: Tensor
    key_metric: Tensor
    value_metric: Tensor
    covariance: Tensor
    token_moment: Tensor


@dataclass(frozen=True)
class LatentFactors:
    """``key ~ key_up @ down`` and ``value ~ value_up @ down``; float64.

    Attributes:
        down: input to latent  # [rank, hidden]
        key_up: latent to keys  # [kv_heads * d, rank]
        value_up: latent to values  # [kv_heads * d, rank]
        centred: whether the values' mean error leaves through the output bias.
    """

    down: Tensor
    key_up: Tensor
    value_up: Tensor
    centred: bool

    def truncated(self, rank: int) -> "LatentFactors":
        """The first ``rank`` components: what a strategy in ``IN_ORDER`` makes at that rank."""
        return LatentFactors(
            self.down[:rank], self.key_up[:, :rank], self.value_up[:, :rank], self.centred
        )


LatentStrategy = Callable[[LatentTarget, int], LatentFactors]
"""``strategy(target, kv_lora_rank)``."""


def latent_target(
    weights: AttentionWeights,
    statistics: LayerStatistics,
    selection: RotarySelection,
    key_weight: float,
) -> LatentTarget:
    """Keys and values to compress, in one metric.

    ``M_K[g] = key_weight * scale^2 * sum_{h in g} gamma_h E[q_nope q_nope^T]`` and
    ``M_V[g] = sum_{h in g} omega_h W_O[h]^T W_O[h]``, both in squared units of the layer's
    attention output: gamma is the value variance an error in the scores moves the output along,
    omega the attention concentration that turns value errors into output errors.
    """
    kv_heads, d, _ = weights.key.shape
    N = selection.query_nope  # [heads, d, d]
    q_nope = N @ statistics.query_moment @ N.transpose(1, 2)
    key_metric = statistics.gamma[:, None, None] * q_nope * (key_weight * weights.scale**2)
    output = weights.output.double()
    value_metric = statistics.omega[:, None, None] * (output.transpose(1, 2) @ output)
    return LatentTarget(
        key=selection.key_nope @ weights.key.double().flatten(0, 1),
        value=weights.value.double().flatten(0, 1),
        key_metric=key_metric.view(kv_heads, -1, d, d).sum(1),
        value_metric=value_metric.view(kv_heads, -1, d, d).sum(1),
        covariance=statistics.input_covariance,
        token_moment=statistics.token_moment,
    )
