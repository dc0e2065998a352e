"""MHA2MLA's partial RoPE: every KV head keeps pairs of its own, as many as every other head."""

import torch
from torch import Tensor

from conversion.errors import RecipeError
from conversion.families import AttentionWeights
from conversion.rotary.removal import plain_removal
from conversion.rotary.selection import RotarySelection, complex_rows


def same_in_every_head(kv_heads: int, head_dim: int) -> int:
    """The step of these strategies: one more pair in every KV head."""
    return 2 * kv_heads


def pairs_per_head(strategy: str, weights: AttentionWeights, rope_dim: int) -> int:
    """Pairs each KV head keeps.

    Raises:
        RecipeError: ``rope_dim`` is no multiple of two dimensions per KV head.
    """
    kv_heads, d, _ = weights.key.shape
    step = same_in_every_head(kv_heads, d)
    if rope_dim % step:
        raise RecipeError(
            f"rope_dim {rope_dim}: {strategy} keeps the same number of pairs in each of "
            f"{kv_heads} KV heads; give a multiple of {step}"
        )
    return rope_dim // step


def select_pairs(weights: AttentionWeights, kept: Tensor) -> RotarySelection:
    """The selection that keeps these pairs and removes the rotation of all others.

    The shared rotary key is the concatenation of the KV heads' kept pairs (MHA2MLA,
    arXiv:2502.14837, section 3.1), and a query is zero outside its own KV head's part.

    Args:
        weights: the layer's attention.
        kept: indices of the kept pairs of each KV head  # [kv_heads, pairs per head]
    """
    kv_heads, d, _ = weights.key.shape
    f = kept.flatten()
    g = torch.arange(kv_heads, device=f.device).repeat_interleave(kept.shape[1])
    rows = torch.arange(f.numel(), device=f.device)
    key = torch.zeros(f.numel(), kv_heads, d // 2, dtype=torch.complex128, device=f.device)
    key[rows, g, f] = 1
    return plain_removal(weights, weights.inv_freq.double()[f], complex_rows(key))
