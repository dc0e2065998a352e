"""CARE's SVD of key and value weights behind the square root of the input's covariance."""

import torch

from conversion.latent.factors import LatentFactors, LatentMethod, LatentTarget
from conversion.latent.truncation import truncated_svd

SHRINKAGE = 0.1
"""The multiple of the identity added to the covariance, in units of its mean diagonal element."""


def whitened(target: LatentTarget, rank: int) -> LatentFactors:
    """Truncated SVD of ``W C^(1/2)`` with ``W = [W_k; W_v]``: least error of the activations.

    CARE (arXiv:2603.17946; ``cwsvd_decompose`` of its release, after RoRoPE): with
    ``W C^(1/2) = U S V^T`` the up-projections are ``U`` and the latent is
    ``S V^T C^(-1/2) x``. ``C`` is the uncentred second moment of the input, every token alike,
    shrunk towards the identity as in the release: ``C = E[x x^T] + 0.1 mean(diag E[x x^T])``.
    CARE also chooses ranks per layer; here ranks are given.
    """
    C = target.token_moment
    eye = torch.eye(len(C), dtype=C.dtype, device=C.device)
    values, vectors = torch.linalg.eigh(C + SHRINKAGE * C.diagonal().mean() * eye)
    root = (vectors * values.sqrt()) @ vectors.T
    inverse = (vectors / values.sqrt()) @ vectors.T
    U, S, Vh = truncated_svd(torch.cat((target.key, target.value)) @ root, rank)
    key_up, value_up = U.chunk(2)
    return LatentFactors(
        down=S[:, None] * Vh @ inverse, key_up=key_up, value_up=value_up, centred=False
    )


METHOD = LatentMethod(whitened, nested=True, reference="arXiv:2603.17946")
