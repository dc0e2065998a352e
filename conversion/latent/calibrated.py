"""Ours: principal components of keys and values under one metric of the attention output."""

import torch
from torch import Tensor

from conversion.latent.factors import LatentFactors, LatentMethod, LatentTarget
from conversion.runtime.linalg import cholesky, with_floor

# Floors on what was measured, relative to mean diagonal elements: directions never queried, or
# never seen in the input, still get factors, in an order that does not depend on rounding.
METRIC_FLOOR = 1e-4
COVARIANCE_FLOOR = 1e-8


def calibrated(target: LatentTarget, rank: int) -> LatentFactors:
    """The map of this rank with the least error of the attention output, to first order.

        min_{A, B}  tr[L^T (W - B A) C (W - B A)^T L]

    with ``W = [key; value]``, ``M = L L^T`` the metric and ``C`` the input's centred covariance
    under the attention received. If ``U`` holds the top eigenvectors of ``L^T W C W^T L``, then
    ``A = U^T L^T W`` and ``B = L^-T U`` (Eckart-Young under a weighted norm). Centring is free: a
    constant added to all unrotated keys cancels in the softmax, and the values' mean leaves
    through the output bias.

    Under MHA ``W`` has more rows than columns. Then ``L^T W = Q R`` and ``U = Q U_R`` with
    the eigenvectors ``U_R`` of the smaller ``R C R^T``; the other eigenvalues are zero.
    """
    L = cholesky(target.metric, METRIC_FLOOR)
    weighted = L.T @ torch.cat((target.key, target.value))  # L^T W  # [2 * kv_heads * d, inputs]
    U = _principal(weighted, with_floor(target.covariance, COVARIANCE_FLOOR), rank)
    up = torch.linalg.solve_triangular(L.T, U, upper=True)
    key_up, value_up = up.chunk(2)
    return LatentFactors(down=U.T @ weighted, key_up=key_up, value_up=value_up, centred=True)


def _principal(x: Tensor, covariance: Tensor, rank: int) -> Tensor:
    """Top eigenvectors of ``x C x^T``, as columns; zeros beyond its rank  # [len(x), rank]"""
    Q, R = torch.linalg.qr(x) if len(x) > x.shape[1] else (None, x)
    _, vectors = torch.linalg.eigh(R @ covariance @ R.T)
    top = vectors[:, -rank:].flip(-1)
    top = torch.nn.functional.pad(top, (0, rank - top.shape[1]))
    return top if Q is None else Q @ top


METHOD = LatentMethod(calibrated, nested=True, reference="ours: docs/method.md")
