"""MHA2MLA's uniform choice: evenly spaced pairs stay rotary."""

import torch

from conversion.calibration.statistics import LayerStatistics
from conversion.families import AttentionWeights
from conversion.rotary.per_head import pairs_per_head, same_in_every_head, select_pairs
from conversion.rotary.selection import RotaryMethod, RotarySelection


def uniform(
    weights: AttentionWeights, statistics: LayerStatistics, rope_dim: int
) -> RotarySelection:
    """Keep the same evenly spaced pairs in every KV head; drop rotation from the rest.

    ``S_uniform`` of MHA2MLA (arXiv:2502.14837, section 3.1): ``f = 0, s, 2s, ...`` with
    ``s = (d/2) / r`` for ``r`` pairs per head. Where ``r`` does not divide ``d/2``, which the
    paper leaves out, spacings alternate: ``f_i = floor(i s)``.

    Raises:
        RecipeError: ``rope_dim`` is no multiple of two dimensions per KV head.
    """
    per_head = pairs_per_head("uniform", weights, rope_dim)
    kv_heads, d, _ = weights.key.shape
    index = torch.arange(per_head, device=weights.key.device)
    kept = index * (d // 2) // max(per_head, 1)
    return select_pairs(weights, kept.expand(kv_heads, -1))


METHOD = RotaryMethod(uniform, step=same_in_every_head, reference="arXiv:2502.14837")
