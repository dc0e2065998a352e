"""MHA2MLA's choice of rotary dimensions by their contribution to the scores."""

import torch

from conversion.calibration.statistics import AttentionWeights, LayerStatistics
from conversion.errors import RecipeError
from conversion.rotary.selection import RotarySelection, complex_rows


def two_norm(
    weights: AttentionWeights, statistics: LayerStatistics, rope_dim: int
) -> RotarySelection:
    """Keep each KV head's pairs of largest ``E||q_f|| E||k_f||``; drop rotation from the rest.

    ``S_2-norm`` of MHA2MLA (arXiv:2502.14837, section 3.1): by Cauchy-Schwarz
    ``|q_f^T k_f| <= ||q_f|| ||k_f||``, averaged over the calibration text and, under GQA, over
    the query heads of the group. Every KV head keeps its own ``rope_dim / kv_heads`` dimensions;
    the shared rotary key is their concatenation, and a query is zero outside its head's part.

    Raises:
        RecipeError: ``rope_dim`` is no multiple of two dimensions per KV head.
    """
    heads, d, _ = weights.query.shape
    kv_heads, pairs = weights.key.shape[0], d // 2
    if rope_dim % (2 * kv_heads):
        raise RecipeError(
            f"rope_dim {rope_dim}: 2-norm keeps the same number of pairs in each of {kv_heads} "
            f"KV heads; give a multiple of {2 * kv_heads}"
        )
    per_head = rope_dim // 2 // kv_heads
    score = statistics.key_norm * statistics.query_norm.view(kv_heads, -1, pairs).mean(1)
    kept = score.topk(per_head, dim=-1).indices.sort(-1).values  # [kv_heads, per_head]

    f = kept.flatten()
    g = torch.arange(kv_heads, device=f.device).repeat_interleave(per_head)
    rows = torch.arange(f.numel(), device=f.device)
    one = torch.ones((), dtype=torch.complex128, device=f.device)
    key = torch.zeros(f.numel(), kv_heads, pairs, dtype=torch.complex128, device=f.device)
    key[rows, g, f] = one
    query = torch.zeros(heads, f.numel(), 1, pairs, dtype=torch.complex128, device=f.device)
    for h in range(heads):
        mine = g == h // weights.group
        query[h, rows[mine], 0, f[mine]] = one
    key_rope = complex_rows(key)
    eye = torch.eye(d, dtype=torch.float64, device=f.device)
    return RotarySelection(
        inv_freq=weights.inv_freq.double()[f],
        key_rope=key_rope,
        query_rope=torch.stack([complex_rows(q) for q in query]),
        key_nope=torch.eye(kv_heads * d, device=f.device).double() - key_rope.T @ key_rope,
        query_nope=eye.expand(heads, d, d).clone(),
    )
