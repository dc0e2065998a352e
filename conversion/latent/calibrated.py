"""Ours: principal components of keys and values under one metric of the attention output."""

import torch
from torch import Tensor

from conversion.latent.factors import LatentFactors, LatentTarget

# Floors relative to the largest eigenvalue: directions never queried, or never seen in the input,
# still get factors, in an order that does not depend on rounding.
METRIC_FLOOR = 1e-8
COVARIANCE_FLOOR = 1e-8


def calibrated(target: LatentTarget, rank: int) -> LatentFactors:
    """The best rank-``rank`` map under ``tr[M^(1/2) (W - B A) C (W - B A)^T M^(1/2)]``.

    With ``W = [key; value]``, ``M = diag(M_K, M_V)`` and ``C`` the input's centred covariance
    under the attention received: if ``U`` holds the top eigenvectors of
    ``M^(1/2) W C W^T M^(1/2)``, then ``A = U^T M^(1/2) W`` and ``B = M^(-1/2) U``
    (Eckart-Young under a weighted norm). Centring is free: a constant added to all unrotated keys
    cancels in the softmax, and the values' mean leaves through the output bias.

    Under MHA ``W`` has more rows than columns. Then ``M^(1/2) W = Q R`` and ``U = Q U_R`` with
    the eigenvectors ``U_R`` of the smaller ``R C R^T``; the other eigenvalues are zero.
    """
    roots, inverses = _block_roots(torch.cat((target.key_metric, target.value_metric)))
    C = target.covariance
    C = C + torch.eye(C.shape[0], dtype=C.dtype, device=C.device) * (
        C.diagonal().mean() * COVARIANCE_FLOOR
    )
    # M^(1/2) W  # [2 * kv_heads * d, hidden]
    weighted = _apply_blocks(roots, torch.cat((target.key, target.value)))
    U = _principal(weighted, C, rank)
    up = _apply_blocks(inverses, U)
    key_up, value_up = up.chunk(2)
    return LatentFactors(down=U.T @ weighted, key_up=key_up, value_up=value_up, centred=True)


def _principal(x: Tensor, covariance: Tensor, rank: int) -> Tensor:
    """Top eigenvectors of ``x C x^T``, as columns; zeros beyond its rank  # [len(x), rank]"""
    Q, R = torch.linalg.qr(x) if len(x) > x.shape[1] else (None, x)
    _, vectors = torch.linalg.eigh(R @ covariance @ R.T)
    top = vectors[:, -rank:].flip(-1)
    top = torch.nn.functional.pad(top, (0, rank - top.shape[1]))
    return top if Q is None else Q @ top


def _block_roots(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Square root and inverse square root of symmetric blocks  # [blocks, d, d]"""
    values, vectors = torch.linalg.eigh(blocks)
    values = values.clamp_min(float(values.max()) * METRIC_FLOOR).sqrt()
    root = (vectors * values[:, None]) @ vectors.transpose(1, 2)
    inverse = (vectors / values[:, None]) @ vectors.transpose(1, 2)
    return root, inverse


def _apply_blocks(blocks: Tensor, x: Tensor) -> Tensor:
    """Block-diagonal matrix times ``x``  # [blocks * d, n]"""
    count, d, _ = blocks.shape
    return (blocks @ x.view(count, d, -1)).reshape(x.shape)
