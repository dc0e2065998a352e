"""Complex rotation across heads, and one mean rotation per pair for what leaves RoPE."""

import torch
from torch import Tensor

from conversion.calibration.statistics import LayerStatistics
from conversion.families import AttentionWeights
from conversion.rotary.components import keep_costliest
from conversion.rotary.selection import RotaryMethod, RotarySelection, complex_rows, pair_power


def mean_rotation(
    weights: AttentionWeights, statistics: LayerStatistics, rope_dim: int
) -> RotarySelection:
    """Keep the rotary components whose loss of rotation would change the scores most.

    A component that loses RoPE keeps its mean rotation ``rho[h, f] = E[exp(i theta_f D)]`` over the
    head's attention, folded into the query; the squared score error is then
    ``lambda (1 - |rho|^2)`` instead of ``2 lambda (1 - Re rho)`` for plain removal. What stays is
    chosen by ``keep_costliest`` with ``Z_f = E[z z^H]``, weighted by attention received, and
    ``D_f = diag_g(sum_{h in g} E|u[h,f]|^2 (1 - |rho[h,f]|^2))``.

    Limitations: keys and distances are taken as independent, though the sink tokens, which get
    most of the attention, are far away and what else is attended to is near. One calibration
    window bounds the distances ``D`` seen.
    """
    kv_heads, d, _ = weights.key.shape
    rho = statistics.rho  # [heads, pairs]
    power = pair_power(statistics.query_moment)  # E|u|^2  # [heads, pairs]
    cost = (power * (1 - rho.abs().square()).clamp_min(0)).view(kv_heads, -1, d // 2).sum(1).T
    kept = keep_costliest(weights, _key_moment(weights, statistics), cost, rope_dim // 2)
    return RotarySelection(
        **vars(kept),
        query_nope=complex_rows(torch.diag_embed(rho)[:, :, None]),
    )


def _key_moment(weights: AttentionWeights, statistics: LayerStatistics) -> Tensor:
    """``Z_f = E[z z^H]`` under the attention received  # [d/2, kv_heads, kv_heads]"""
    kv_heads, d, _ = weights.key.shape
    key = weights.key.double().flatten(0, 1)  # [kv_heads * d, inputs]
    mean = key @ statistics.input_mean + weights.key_bias.double().flatten()
    moment = key @ statistics.input_covariance @ key.T + torch.outer(mean, mean)
    blocks = moment.view(kv_heads, 2, d // 2, kv_heads, 2, d // 2)
    same = blocks.diagonal(dim1=2, dim2=5)  # [kv_heads, 2, kv_heads, 2, d/2]
    real = same[:, 0, :, 0] + same[:, 1, :, 1]
    imaginary = same[:, 1, :, 0] - same[:, 0, :, 1]
    return torch.complex(real, imaginary).permute(2, 0, 1)


METHOD = RotaryMethod(mean_rotation, reference="ours: docs/method.md")
