"""MHA2MLA's joint SVD of key and value weights."""

import torch

from conversion.latent.factors import LatentFactors, LatentTarget


def svd_joint(target: LatentTarget, rank: int) -> LatentFactors:
    """Truncated SVD of ``[W_k; W_v]``, no data involved.

    ``SVD_joint`` of MHA2MLA (arXiv:2502.14837, section 3.2): ``[W_k; W_v] = U S V^T``, the latent
    is ``S^(1/2) V^T x`` and both up-projections are rows of ``U S^(1/2)``.
    """
    U, S, Vh = torch.linalg.svd(torch.cat((target.key, target.value)), full_matrices=False)
    root = S[:rank].sqrt()
    key_up, value_up = (U[:, :rank] * root).chunk(2)
    return LatentFactors(
        down=root[:, None] * Vh[:rank], key_up=key_up, value_up=value_up, centred=False
    )
