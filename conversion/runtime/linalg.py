"""Factors of measured moments, and heads one by one or together."""

import torch
from torch import Tensor


def head_groups(heads: int, device: torch.device) -> list[int] | list[Tensor]:
    """Heads to compute together: each alone on a CPU, for its memory; all at once on a GPU.

    Args:
        heads: how many there are.
        device: that computes.

    Returns:
        an index of each group: a number, or numbers  # [heads of the group]
    """
    if device.type == "cpu":
        return list(range(heads))
    return [torch.arange(heads, device=device)]


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
