"""Components across the KV heads of one frequency, the costliest of which stay rotary."""

from dataclasses import dataclass

import torch
from torch import Tensor

from conversion.families import AttentionWeights
from conversion.rotary.selection import complex_rows

# Floor of a head's cost, relative to the largest: keeps D_f invertible.
FLOOR = 1e-6


@dataclass(frozen=True)
class KeptComponents:
    """A ``RotarySelection`` without the queries of what loses its rotation; float64.

    Attributes:
        inv_freq: frequency of each kept pair  # [rope/2]
        key_rope: shared rotary key of all heads  # [rope, kv_heads * d]
        query_rope: each head's rotary query  # [heads, rope, d]
        key_nope: what is left of the keys  # [kv_heads * d, kv_heads * d]
    """

    inv_freq: Tensor
    key_rope: Tensor
    query_rope: Tensor
    key_nope: Tensor


def keep_costliest(
    weights: AttentionWeights, moment: Tensor, cost: Tensor, keep: int
) -> KeptComponents:
    """Keep the rotary components that are the costliest to lose.

    RoPE commutes with any complex-linear map across the heads of one frequency f. With ``Z_f`` a
    second moment of the pairs and ``D_f`` a diagonal of the cost of a unit of lost power in each KV
    head, the eigenvectors ``E`` of ``D^(1/2) Z D^(1/2)`` give components ``y = E^H D^(1/2) z``,
    each with the cost of its loss as eigenvalue. The ``keep`` costliest over all frequencies stay;
    one frequency may keep none or all of its heads'. The keys' rest is ``z - V_kept y_kept`` with
    ``V = D^(-1/2) E``.

    Args:
        weights: the source's attention.
        moment: ``Z_f``  # [d/2, kv_heads, kv_heads], complex
        cost: the diagonals of ``D_f``, not negative  # [d/2, kv_heads]
        keep: how many pairs stay rotary.
    """
    heads, d, _ = weights.query.shape
    kv_heads, pairs = weights.key.shape[0], d // 2
    cost = torch.maximum(cost, cost.max() * FLOOR)
    root = cost.sqrt().to(moment.dtype)
    eigenvalues, E = torch.linalg.eigh(root[:, :, None] * moment * root[:, None, :])
    order = eigenvalues.flatten().argsort(descending=True)[:keep].sort().values
    f, j = order // kv_heads, order % kv_heads  # frequency and component of each kept pair
    V = (E / root[:, :, None])[f, :, j]  # [keep, kv_heads]
    W = (E.conj() * root[:, :, None])[f, :, j]  # y = W z  # [keep, kv_heads]

    group_of = torch.arange(heads, device=f.device) // weights.group
    rows = torch.arange(keep, device=f.device)
    key = torch.zeros(keep, kv_heads, pairs, dtype=moment.dtype, device=f.device)
    key[rows, :, f] = W
    back = torch.zeros_like(key)
    back[rows, :, f] = V.conj()
    query = torch.zeros(heads, keep, 1, pairs, dtype=moment.dtype, device=f.device)
    query[:, rows, 0, f] = V.conj()[:, group_of].T
    key_rope = complex_rows(key)
    # complex_rows of conj(V) is the transpose of the real form of V.
    key_nope = torch.eye(kv_heads * d, device=f.device).double() - complex_rows(back).T @ key_rope
    return KeptComponents(
        inv_freq=weights.inv_freq.double()[f],
        key_rope=key_rope,
        query_rope=complex_rows(query),
        key_nope=key_nope,
    )
