"""Ours: complex rotation across heads, and mean rotation for what leaves RoPE."""

import torch
from torch import Tensor

from conversion.calibration.statistics import AttentionWeights, LayerStatistics
from conversion.rotary.selection import RotarySelection, complex_rows, pair_power

# Floor of a head's weight, relative to the largest: keeps D_f invertible.
FLOOR = 1e-6


def calibrated(
    weights: AttentionWeights, statistics: LayerStatistics, rope_dim: int
) -> RotarySelection:
    """Keep the rotary components whose loss of rotation would change the scores most.

    1. RoPE commutes with any complex-linear map across the heads of one frequency f. A component
       that loses RoPE keeps its mean rotation ``rho[h, f] = E[exp(i theta_f D)]`` over the head's
       attention, folded into the query; the squared score error is then
       ``lambda (1 - |rho|^2)`` instead of ``2 lambda (1 - Re rho)`` for plain removal.
    2. With ``Z_f = E[z z^H]`` (weighted by attention received) and
       ``D_f = diag_g(sum_{h in g} E|u[h,f]|^2 (1 - |rho[h,f]|^2))``, the eigenvectors
       ``E`` of ``D^(1/2) Z D^(1/2)`` give components ``y = E^H D^(1/2) z``, each with the error
       its removal causes as eigenvalue.
    3. Keep the ``rope_dim / 2`` components of largest error over all frequencies; one frequency
       may keep none or all of its heads'. The keys' rest, ``z - V_kept y_kept`` with
       ``V = D^(-1/2) E``, goes to the latent.

    Limitations: the query's and the key's distributions are taken as independent, and one
    calibration window bounds the distances ``D`` seen.
    """
    heads, d, _ = weights.query.shape
    kv_heads, pairs = weights.key.shape[0], d // 2
    keep = rope_dim // 2
    rho = statistics.rho  # [heads, pairs]
    power = pair_power(statistics.query_moment)  # E|u|^2  # [heads, pairs]
    cost = (power * (1 - rho.abs().square()).clamp_min(0)).view(kv_heads, -1, pairs).sum(1)
    cost = cost.clamp_min(float(cost.max()) * FLOOR).T  # D_f  # [pairs, kv_heads]

    Z = _key_moment(weights, statistics)  # [pairs, kv_heads, kv_heads]
    root = cost.sqrt().to(Z.dtype)
    eigenvalues, E = torch.linalg.eigh(root[:, :, None] * Z * root[:, None, :])
    order = eigenvalues.flatten().argsort(descending=True)[:keep].sort().values
    f, j = order // kv_heads, order % kv_heads  # frequency and component of each kept pair
    V = (E / root[:, :, None])[f, :, j]  # [keep, kv_heads]
    W = (E.conj() * root[:, :, None])[f, :, j]  # y = W z  # [keep, kv_heads]

    group_of = torch.arange(heads, device=f.device) // weights.group
    rows = torch.arange(keep, device=f.device)
    key = torch.zeros(keep, kv_heads, pairs, dtype=Z.dtype, device=f.device)
    key[rows, :, f] = W
    back = torch.zeros_like(key)
    back[rows, :, f] = V.conj()
    query = torch.zeros(heads, keep, 1, pairs, dtype=Z.dtype, device=f.device)
    query[:, rows, 0, f] = V.conj()[:, group_of].T
    key_rope = complex_rows(key)
    # complex_rows of conj(V) is the transpose of the real form of V.
    key_nope = torch.eye(kv_heads * d, device=f.device).double() - complex_rows(back).T @ key_rope
    return RotarySelection(
        inv_freq=weights.inv_freq.double()[f],
        key_rope=key_rope,
        query_rope=torch.stack([complex_rows(q) for q in query]),
        key_nope=key_nope,
        query_nope=torch.stack([complex_rows(torch.diag(r)[:, None]) for r in rho]),
    )


def _key_moment(weights: AttentionWeights, statistics: LayerStatistics) -> Tensor:
    """``Z_f = E[z z^H]`` under the attention received  # [d/2, kv_heads, kv_heads]"""
    kv_heads, d, _ = weights.key.shape
    key = weights.key.double().flatten(0, 1)  # [kv_heads * d, hidden]
    mean = key @ statistics.input_mean + weights.key_bias.double().flatten()
    moment = key @ statistics.input_covariance @ key.T + torch.outer(mean, mean)
    blocks = moment.view(kv_heads, 2, d // 2, kv_heads, 2, d // 2)
    same = blocks.diagonal(dim1=2, dim2=5)  # [kv_heads, 2, kv_heads, 2, d/2]
    real = same[:, 0, :, 0] + same[:, 1, :, 1]
    imaginary = same[:, 1, :, 0] - same[:, 0, :, 1]
    return torch.complex(real, imaginary).permute(2, 0, 1)
