"""Factors of measured moments, which are semidefinite up to rounding."""

import torch
from torch import Tensor


def cholesky(matrix: Tensor, floor: float) -> Tensor:
    """Factorise a positive semidefinite matrix, raised by a floor as low as rounding allows.

    If the text has fewer different tokens than the model has dimensions, some eigenvalues are zero,
    and rounding makes them slightly negative. The floor is raised tenfold until it hides that.

    Args:
        matrix: the moment  # [n, n]
        floor: the first floor to try, relative to the mean diagonal element.

    Returns:
        ``L`` with ``L L^T`` the raised matrix  # [n, n]
    """
    L, failed = torch.linalg.cholesky_ex(with_floor(matrix, floor))
    while bool(failed) and floor < 1:
        floor *= 10
        L, failed = torch.linalg.cholesky_ex(with_floor(matrix, floor))
    factor: Tensor = L
    return factor


def with_floor(matrix: Tensor, floor: float) -> Tensor:
    """Add ``floor`` times a moment's mean diagonal element to its diagonal  # [..., n, n]"""
    added = floor * matrix.diagonal(dim1=-2, dim2=-1).mean()
    return matrix + added * torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
