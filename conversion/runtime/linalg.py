"""Measured moments, semidefinite up to rounding, made definite."""

import torch
from torch import Tensor


def cholesky(matrix: Tensor, floor: float) -> Tensor:
    """``L`` with ``L L^T`` a positive semidefinite matrix, its floor as low as rounding allows.

    Where the text has fewer different tokens than the model dimensions, rounding decides whether
    the smallest eigenvalues are negative.

    Args:
        matrix: the moment  # [n, n]
        floor: the first to try, relative to the mean diagonal element.
    """
    L, failed = torch.linalg.cholesky_ex(with_floor(matrix, floor))
    while bool(failed) and floor < 1:
        floor *= 10
        L, failed = torch.linalg.cholesky_ex(with_floor(matrix, floor))
    factor: Tensor = L
    return factor


def with_floor(matrix: Tensor, floor: float) -> Tensor:
    """A moment with ``floor`` of its mean diagonal element added to the diagonal  # [..., n, n]"""
    added = floor * matrix.diagonal(dim1=-2, dim2=-1).mean()
    return matrix + added * torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
