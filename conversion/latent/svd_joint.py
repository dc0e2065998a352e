"""MHA2MLA's joint SVD of key and value weights."""

import torch

from conversion.latent.factors import LatentFactors, LatentMethod, LatentTarget
from conversion.latent.truncation import truncated_svd


def svd_joint(target: LatentTarget, rank: int) -> LatentFactors:
    """Truncated SVD of ``[W_k; W_v]``, no data involved.

    ``SVD_joint`` of MHA2MLA (arXiv:2502.14837, section 3.2): ``[W_k; W_v] = U S V^T``, the latent
    is ``S^(1/2) V^T x`` and both up-projections are rows of ``U S^(1/2)``.
    """
    U, S, Vh = truncated_svd(torch.cat((target.key, target.value)), rank)
    root = S.sqrt()
    key_up, value_up = (U * root).chunk(2)
    return LatentFactors(down=root[:, None] * Vh, key_up=key_up, value_up=value_up, centred=False)


METHOD = LatentMethod(svd_joint, nested=True, reference="arXiv:2502.14837")
