"""MHA2MLA's choice of rotary dimensions by their contribution to the scores."""

from conversion.calibration.statistics import LayerStatistics
from conversion.families import AttentionWeights
from conversion.rotary.per_head import pairs_per_head, same_in_every_head, select_pairs
from conversion.rotary.selection import RotaryMethod, RotarySelection


def two_norm(
    weights: AttentionWeights, statistics: LayerStatistics, rope_dim: int
) -> RotarySelection:
    """Keep each KV head's pairs of largest ``E||q_f|| E||k_f||``; drop rotation from the rest.

    ``S_2-norm`` of MHA2MLA (arXiv:2502.14837, section 3.1): by Cauchy-Schwarz
    ``|q_f^T k_f| <= ||q_f|| ||k_f||``, averaged over the calibration text and, under GQA, over
    the query heads of the group. Every KV head keeps its own ``rope_dim / kv_heads`` dimensions.

    Raises:
        RecipeError: ``rope_dim`` is no multiple of two dimensions per KV head.
    """
    per_head = pairs_per_head("2-norm", weights, rope_dim)
    kv_heads, d, _ = weights.key.shape
    score = statistics.key_norm * statistics.query_norm.view(kv_heads, -1, d // 2).mean(1)
    return select_pairs(weights, score.topk(per_head, dim=-1).indices.sort(-1).values)


METHOD = RotaryMethod(two_norm, step=same_in_every_head, reference="arXiv:2502.14837")
