"""Partial RoPE by plain removal: the rest is scored as if query and key were at one position."""

import torch
from torch import Tensor

from conversion.families import AttentionWeights
from conversion.rotary.selection import RotarySelection


def plain_removal(weights: AttentionWeights, inv_freq: Tensor, key_rope: Tensor) -> RotarySelection:
    """Keep orthonormal rotary components ``P``; the rest of the keys loses its rotation.

    With orthonormal rows ``q^T k = (P q)^T (P k) + q^T (1 - P^T P) k``, so at distance zero
    nothing changes. The key of query head h is that of its KV head, so its rotary query is ``P``
    on that head's columns; under GQA all heads of a group share them.

    Args:
        weights: the layer's attention.
        inv_freq: frequency of each kept pair  # [rope/2]
        key_rope: ``P``, real parts of all pairs, then imaginary parts  # [rope, kv_heads * d]
    """
    heads, d, _ = weights.query.shape
    kv_heads = weights.key.shape[0]
    per_head = key_rope.view(-1, kv_heads, d).transpose(0, 1)  # [kv_heads, rope, d]
    eye = torch.eye(kv_heads * d, dtype=torch.float64, device=key_rope.device)
    return RotarySelection(
        inv_freq=inv_freq,
        key_rope=key_rope,
        query_rope=per_head.repeat_interleave(weights.group, dim=0),
        key_nope=eye - key_rope.T @ key_rope,
        query_nope=eye[:d, :d].expand(heads, d, d).clone(),
    )
