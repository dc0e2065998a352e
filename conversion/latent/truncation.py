"""Truncated singular value decompositions of exactly the rank asked for."""

import torch
from torch import Tensor


def truncated_svd(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """The ``rank`` largest singular values of ``matrix`` with their vectors.

    A latent may be wider than the smaller side of a matrix (MHA has twice as many key and value
    dimensions as inputs). The cache has that width all the same, so zeros fill what is missing.

    Returns:
        U  # [rows, rank]
        S  # [rank]
        Vh  # [rank, columns]
    """
    U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
    missing = max(0, rank - len(S))
    pad = torch.nn.functional.pad
    return (
        pad(U[:, :rank], (0, missing)),
        pad(S[:rank], (0, missing)),
        pad(Vh[:rank], (0, 0, 0, missing)),
    )
