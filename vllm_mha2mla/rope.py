"""Rotary embedding with one frequency per kept pair, in the two-halves (NeoX) widths."""

import torch
from torch import Tensor


def rotary_angles(positions: Tensor, inv_freq: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of ``position * theta_j``, in float32.

    Args:
        positions: integers, any shape ``[...]``.
        inv_freq: ``theta_j`` of each kept pair, float32  # [rope/2]

    Returns:
        ``cos, sin``  # [..., rope/2]
    """
    angles = positions.to(torch.float32).unsqueeze(-1) * inv_freq
    return angles.cos(), angles.sin()


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn pair ``j`` of ``x``, stored as ``(x[j], x[j + rope/2])``, by its angle.

    ``(x1 + i x2) e^{i phi} = (x1 cos - x2 sin) + i (x2 cos + x1 sin)`` (RoFormer,
    arXiv:2104.09864, eq. 34), computed in float32 and returned in the dtype of ``x``.

    Args:
        x: components to rotate  # [..., rope]
        cos: broadcastable against the halves of ``x``  # [..., rope/2]
        sin: of the same angles  # [..., rope/2]
    """
    x1, x2 = x.float().chunk(2, dim=-1)
    return torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin), dim=-1).to(x.dtype)
