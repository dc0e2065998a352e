"""MHA2MLA's high-frequency choice: the pairs of highest frequency stay rotary."""

from conversion.calibration.statistics import LayerStatistics
from conversion.families import AttentionWeights
from conversion.rotary.per_head import pairs_per_head, same_in_every_head, select_pairs
from conversion.rotary.selection import RotaryMethod, RotarySelection


def high(weights: AttentionWeights, statistics: LayerStatistics, rope_dim: int) -> RotarySelection:
    """Keep the same pairs of highest frequency in every KV head; drop rotation from the rest.

    ``S_high`` of MHA2MLA (arXiv:2502.14837, section 3.1): ``{f | 0 <= f < r}`` with ``r`` pairs
    per head, frequencies falling with ``f``. Local order survives, long-range position is lost.

    Raises:
        RecipeError: ``rope_dim`` is no multiple of two dimensions per KV head.
    """
    per_head = pairs_per_head("high", weights, rope_dim)
    kept = weights.inv_freq.topk(per_head).indices.sort().values
    return select_pairs(weights, kept.expand(weights.key.shape[0], -1))


METHOD = RotaryMethod(high, step=same_in_every_head, reference="arXiv:2502.14837")
