"""MHA2MLA's separate SVDs of key and value weights."""

import torch
from torch import Tensor

from conversion.latent.factors import LatentFactors, LatentMethod, LatentTarget
from conversion.latent.truncation import truncated_svd

# Singular values below this part of the largest are rounding: keys that stayed rotary as a whole
# leave such a remainder.
NOTHING = 1e-10


def svd_split(target: LatentTarget, rank: int) -> LatentFactors:
    """Truncated SVDs of ``W_k`` and of ``W_v``, no data involved; half the latent each.

    ``SVD_split`` of MHA2MLA (arXiv:2502.14837, section 3.2): ``W_k = U_k S_k V_k^T`` and
    ``W_v = U_v S_v V_v^T``, the latent is ``[S_k^(1/2) V_k^T x; S_v^(1/2) V_v^T x]`` and each
    up-projection reads its own part. The paper gives both the same rank. Rank one of them has no
    use for goes to the other: few unrotated keys are left when most stay rotary.
    """
    key_rank, value_rank = _shares(target, rank)
    U_k, S_k, Vh_k = truncated_svd(target.key, key_rank)
    U_v, S_v, Vh_v = truncated_svd(target.value, value_rank)
    key_root, value_root = S_k.sqrt(), S_v.sqrt()
    pad = torch.nn.functional.pad
    return LatentFactors(
        down=torch.cat((key_root[:, None] * Vh_k, value_root[:, None] * Vh_v)),
        key_up=pad(U_k * key_root, (0, value_rank)),
        value_up=pad(U_v * value_root, (key_rank, 0)),
        centred=False,
    )


def _shares(target: LatentTarget, rank: int) -> tuple[int, int]:
    key, value = torch.linalg.svdvals(target.key), torch.linalg.svdvals(target.value)
    floor = torch.maximum(key[0], value[0]) * NOTHING
    key_use, value_use = _above(key, floor), _above(value, floor)
    key_rank = min(key_use, max(rank // 2, rank - value_use))
    return key_rank, rank - key_rank


def _above(values: Tensor, floor: Tensor) -> int:
    return int((values > floor).sum())


METHOD = LatentMethod(svd_split, reference="arXiv:2502.14837")
