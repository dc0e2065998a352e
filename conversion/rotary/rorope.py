"""TransMLA's RoRoPE with FreqFold: principal components of the keys across heads stay rotary."""

import torch
from torch import Tensor

from conversion.calibration.statistics import LayerStatistics
from conversion.errors import RecipeError
from conversion.families import AttentionWeights
from conversion.rotary.removal import plain_removal
from conversion.rotary.selection import RotaryMethod, RotarySelection, complex_rows, pair_power

FOLDS = (1, 2, 4, 8)


def widest_fold(kv_heads: int, head_dim: int) -> int:
    """The step of RoRoPE: one component in every group of the widest fold."""
    return head_dim // max(fold for fold in FOLDS if head_dim // 2 % fold == 0)


def folded_least(kv_heads: int, head_dim: int) -> list[int]:
    """The values of ``rope_dim`` for which a fold of at most 4 is enough."""
    step = head_dim // 4
    return [] if step % 2 else list(range(step, head_dim + 1, step))


def rorope(
    weights: AttentionWeights,
    statistics: LayerStatistics,
    rope_dim: int,
    fold: int | None = None,
) -> RotarySelection:
    """Keep the same number of principal components of the keys in every group of frequencies.

    RoRoPE and FreqFold of TransMLA (arXiv:2502.07864; ``partial_rope.py`` of its
    release). ``M = fold`` adjacent frequencies of all KV heads form one group, as if they were
    one frequency. RoPE multiplies a group's pairs by one complex number, so it commutes with any
    real orthogonal ``U`` across them, the same for real and imaginary parts. ``U`` holds the
    eigenvectors of ``E[Re(z z^H)]  # [kv_heads * M, kv_heads * M]``, uncentred and every token
    alike. The first ``r`` of a group stay rotary; the rest loses its rotation. Queries get the
    same ``U`` (with GQA: the part of their KV head), so scores before removal do not change.

    The j-th kept component of a group rotates with the group's frequency ``floor(j M / r)``, as in
    the release: the group's highest with ``r = 1``, and its own, without error, with ``M = 1``.

    The release doubles the fold while perplexity falls. One layer cannot know that, so
    without ``fold`` this takes the fold from 1, 2, 4, 8 of least ``rotary_error``: narrow folds
    lose the rotation of what they drop, wide ones rotate what they keep with a neighbour's
    frequency.

    Raises:
        RecipeError: ``rope_dim`` is not the same number of pairs in every group.
    """
    kv_heads, d, _ = weights.key.shape
    folds = [M for M in FOLDS if d // 2 % M == 0 and rope_dim % (d // M) == 0]
    if fold is not None:
        if d // 2 % fold or rope_dim % (d // fold):
            raise RecipeError(
                f"rope_dim {rope_dim}: rorope with fold {fold} keeps the same number of pairs in "
                f"every group of {fold} frequencies; give a multiple of {d / fold:g}, or no fold"
            )
        folds = [fold]
    if not folds:
        step = widest_fold(kv_heads, d)
        raise RecipeError(
            f"rope_dim {rope_dim}: rorope keeps the same number of pairs in every group of "
            f"frequencies; give a multiple of {step}"
        )
    if len(folds) > 1:
        errors = [rotary_error(weights, statistics, rope_dim, M) for M in folds]
        folds = [folds[errors.index(min(errors))]]
    return _keep(weights, statistics, rope_dim, folds[0])


def rotary_error(
    weights: AttentionWeights, statistics: LayerStatistics, rope_dim: int, fold: int
) -> float:
    """Expected squared error of the unscaled scores, summed over heads.

    With ``lambda_k`` the power of component k of a group, ``chi_h(theta) = E cos(theta D)`` over
    head h's attention, and ``phi_k`` the frequency that rotates component k, 0 if it was not kept:

        sum_{h,f} E|u[h,f]|^2 sum_k lambda_k U[(g(h),f),k]^2 (1 - chi_h(theta_f - phi_k))

    A component's lost rotation and its rotation with a wrong frequency count alike. Queries and
    keys, and different pairs and components among themselves, are taken as uncorrelated.
    """
    heads, d, _ = weights.query.shape
    kv_heads, groups = weights.key.shape[0], d // 2 // fold
    kept = rope_dim // 2 // groups
    power, U = _principal(weights, statistics, fold)
    theta = weights.inv_freq.double().view(groups, fold)
    phi = theta.new_zeros(groups, kv_heads * fold)
    phi[:, :kept] = theta[:, _frequency_of(kept, fold, theta.device)]
    share = power[:, None] * U.square()  # lambda_k U^2  # [groups, kv_heads * fold, components]
    share = share.view(groups, kv_heads, fold, -1).repeat_interleave(weights.group, dim=1)
    query = pair_power(statistics.query_moment).view(heads, groups, fold)
    D = torch.arange(statistics.distance.shape[1], device=theta.device)
    error = 0.0
    for b in range(groups):
        turn = (theta[b, :, None] - phi[b])[..., None] * D  # [fold, components, tokens]
        lost = torch.einsum("ht,fkt->hfk", statistics.distance, 1 - turn.cos())  # 1 - chi
        error += float(torch.einsum("hf,hfk,hfk->", query[:, b], share[b], lost))
    return error


def _keep(
    weights: AttentionWeights, statistics: LayerStatistics, rope_dim: int, fold: int
) -> RotarySelection:
    kv_heads, d, _ = weights.key.shape
    groups = d // 2 // fold
    kept = rope_dim // 2 // groups
    _, U = _principal(weights, statistics, fold)
    rows = U[:, :, :kept].transpose(1, 2).reshape(groups, kept, kv_heads, fold)
    every = torch.arange(groups, device=U.device)
    key = U.new_zeros(groups, kept, kv_heads, groups, fold)
    # A group's components read the pairs of that group only.
    key[every, :, :, every] = rows
    key = key.view(groups * kept, kv_heads, d // 2)
    theta = weights.inv_freq.double().view(groups, fold)
    inv_freq = theta[:, _frequency_of(kept, fold, theta.device)].flatten()
    return plain_removal(weights, inv_freq, complex_rows(torch.complex(key, torch.zeros_like(key))))


def _frequency_of(kept: int, fold: int, device: torch.device) -> Tensor:
    """The frequency, within its group, that rotates each kept component  # [kept]"""
    return torch.arange(kept, device=device) * fold // max(kept, 1)


def _principal(
    weights: AttentionWeights, statistics: LayerStatistics, fold: int
) -> tuple[Tensor, Tensor]:
    """Power of each group's components, falling, and the components, as columns.

    Returns:
        eigenvalues  # [groups, kv_heads * fold]
        eigenvectors  # [groups, kv_heads * fold, kv_heads * fold]
    """
    kv_heads, d, _ = weights.key.shape
    groups = d // 2 // fold
    key, bias = weights.key.double().flatten(0, 1), weights.key_bias.double().flatten()
    mean = key @ statistics.token_mean
    moment = key @ statistics.token_moment @ key.T + torch.outer(mean, bias)
    moment = moment + torch.outer(bias, mean + bias)  # E[k k^T]  # [kv_heads * d, kv_heads * d]
    parts = moment.view(kv_heads, 2, groups, fold, kv_heads, 2, groups, fold)
    real = torch.einsum("apxmbpxn->xambn", parts)
    size = kv_heads * fold
    values, vectors = torch.linalg.eigh(real.reshape(groups, size, size))
    return values.flip(-1).clamp_min(0), vectors.flip(-1)


METHOD = RotaryMethod(rorope, step=widest_fold, favoured=folded_least, reference="arXiv:2502.07864")
