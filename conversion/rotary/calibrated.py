"""Ours: complex rotation across heads, and unrotated stand-ins for the keys that leave RoPE."""

import torch
from torch import Tensor

from conversion.calibration.rotated_keys import RotatedKeys
from conversion.calibration.statistics import LayerStatistics
from conversion.families import AttentionWeights
from conversion.rotary.components import keep_costliest
from conversion.rotary.mean_rotation import mean_rotation
from conversion.rotary.selection import RotaryMethod, RotarySelection, pair_power
from conversion.runtime.linalg import head_groups

# Pull of the stand-ins towards nothing, relative to the mean power of the keys they are made of.
RIDGE = 1e-2
# The same relative to the keys before any left: where all are rotary, nothing is left to map.
LEAST = 1e-9
# The least part of a pair's power that counts as lost: measured moments are rounded.
LEAST_LOST = 1e-6


def calibrated(
    weights: AttentionWeights, statistics: LayerStatistics, rope_dim: int
) -> RotarySelection:
    """Keep the rotary components that unrotated keys can stand in for least.

    A query meets a key rotated by the distance between them, ``R(-D) k``. Without RoPE it meets
    ``T_h k``, the best linear stand-in for what the head attends to:

        min_T  E_m sum_n a[m, n] |R(n - m) k_n - T k_n - c_m|^2  =>  T_h = X_h C_h^-1
        C_h = E_m Cov_n[k]        X_h = E_m Cov_n[R(n - m) k_n, k_n]

    Covariances are within each query's attention, since the constant ``c_m`` cancels in the
    softmax. ``T_h`` goes into the query. It tells the sink tokens, far away and with most of the
    attention, from the others, which are near; one mean rotation per pair (``mean_rotation``)
    rotates the former too little and the latter too much.

    1. ``lost[h, f]`` is the part of a pair's power, rotated as queries see it, that ``T_h`` cannot
       explain. ``keep_costliest`` chooses what stays, with ``p = E|u[h, f]|^2 lost[h, f]``,
       ``D_f = diag_g(sum_{h in g} p)`` and ``Z_f`` the mean over heads, weighted by ``p``, of
       ``E_m Cov_n[z]``.
    2. The keys' rest ``N k`` is rotated as ``k`` is, so its stand-in has ``N X_h N^T`` and
       ``N C_h N^T`` in the place of ``X_h`` and ``C_h``, in the block of the head's own keys.

    Limitations: queries are taken as independent of keys, and one calibration window bounds the
    distances ``D`` seen. With so many KV heads that these moments would be larger than the layer
    (multi-head attention), the result is that of ``mean_rotation``.
    """
    turned = statistics.rotated
    if turned is None:
        return mean_rotation(weights, statistics, rope_dim)
    kv_heads, d, _ = weights.key.shape
    eye = torch.eye(kv_heads * d, dtype=torch.float64, device=weights.key.device)
    power = pair_power(statistics.query_moment) * _lost(weights, turned, eye)  # p  # [heads, d/2]
    cost = power.view(kv_heads, -1, d // 2).sum(1).T
    share = (power / power.sum(0)).to(turned.pairs.dtype)
    moment = torch.einsum("hf,hfab->fab", share, turned.pairs)
    kept = keep_costliest(weights, moment, cost, rope_dim // 2)
    query_nope = torch.empty(len(weights.query), d, d, dtype=eye.dtype, device=eye.device)
    for h in head_groups(len(weights.query), eye.device):
        query_nope[h] = _stand_in(weights, turned, kept.key_nope, h)[0].mT
    return RotarySelection(**vars(kept), query_nope=query_nope)


def _lost(weights: AttentionWeights, turned: RotatedKeys, eye: Tensor) -> Tensor:
    """Part of every pair's power that no unrotated key explains  # [heads, d/2]"""
    heads, d, _ = weights.query.shape
    lost = torch.empty(heads, d // 2, dtype=eye.dtype, device=eye.device)
    for h in head_groups(heads, eye.device):
        T, X = _stand_in(weights, turned, eye, h)
        real, imaginary = (T * X).sum(-1).chunk(2, dim=-1)  # of diag(X C^-1 X^T)
        whole = turned.pairs[h, :, h // weights.group, h // weights.group].real
        lost[h] = 1 - (real + imaginary) / whole.clamp_min(torch.finfo(whole.dtype).tiny)
    return lost.clamp(LEAST_LOST, 1)


def _stand_in(
    weights: AttentionWeights, turned: RotatedKeys, N: Tensor, h: int | Tensor
) -> tuple[Tensor, Tensor]:
    """``T_h`` and ``X_h`` of the keys ``N k`` of a head's own KV head  # both [..., d, d]

    Of one head by its number, or of several, which then lead both shapes.
    """
    kv_heads, d, _ = weights.key.shape
    heads, g = len(weights.query), h // weights.group
    own = N.view(kv_heads, d, -1)[g]  # [..., d, kv_heads * d]
    X = own @ turned.cross[h].double() @ own.mT
    C = own @ turned.plain[h].double() @ own.mT
    powers = turned.plain.diagonal(dim1=-2, dim2=-1).view(heads, kv_heads, d)
    before = powers[h, g].double().mean(-1)
    diagonal = C.diagonal(dim1=-2, dim2=-1)
    pull = RIDGE * diagonal.mean(-1) + LEAST * before
    diagonal.add_(pull.clamp_min(torch.finfo(C.dtype).tiny)[..., None])
    return torch.linalg.solve(C, X.mT).mT, X


METHOD = RotaryMethod(calibrated, reference="ours: docs/method.md")
