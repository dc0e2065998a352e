"""TransMLA's principal components of balanced keys and values."""

import torch

from conversion.latent.factors import LatentFactors, LatentMethod, LatentTarget

# Keys below this part of the values' size are rounding: all of them stayed rotary. Balanced, they
# would take half the latent.
NOTHING = 1e-6


def balanced_pca(target: LatentTarget, rank: int) -> LatentFactors:
    """Uncentred PCA of the activations, keys scaled to the size of values.

    Balanced key-value PCA (BKV) of TransMLA (arXiv:2502.07864): unrotated keys are
    larger than values and would take the principal components, so they are divided by

        alpha = E||k_nope|| / E||v||

    before the PCA of ``[k_nope / alpha; v]`` and multiplied after it. With
    ``W = [W_k / alpha; W_v]`` and the token second moment ``C = E[x x^T]``, the top eigenvectors
    ``R`` of ``W C W^T`` give the latent ``R^T W x`` and the up-projections ``[alpha R_k; R_v]``.

    Norms are root mean squares, so that alpha follows from ``C`` and does not depend on the basis
    of the keys; the release averages norms of single dimensions. Biases are not compressed:
    ``layers.assemble`` accounts for them exactly.
    """
    alpha = balance(target)
    W = torch.cat((target.key / alpha, target.value))  # [2 * kv_heads * d, inputs]
    _, vectors = torch.linalg.eigh(W @ target.token_moment @ W.T)
    R = vectors[:, -rank:].flip(-1)
    key_up, value_up = R.chunk(2)
    return LatentFactors(down=R.T @ W, key_up=alpha * key_up, value_up=value_up, centred=False)


def balance(target: LatentTarget) -> float:
    """``alpha``, the size of the unrotated keys in units of the values'; 1 if either has none."""
    C = target.token_moment
    key = float(torch.einsum("ij,jk,ik->", target.key, C, target.key))  # E||k_nope||^2
    value = float(torch.einsum("ij,jk,ik->", target.value, C, target.value))  # E||v||^2
    if key <= NOTHING**2 * value or value <= 0:
        return 1.0
    return float((key / value) ** 0.5)


METHOD = LatentMethod(balanced_pca, nested=True, reference="arXiv:2502.07864")
