"""MHA2MLA's low-frequency choice: the pairs of lowest frequency stay rotary."""

from conversion.calibration.statistics import LayerStatistics
from conversion.families import AttentionWeights
from conversion.rotary.per_head import pairs_per_head, same_in_every_head, select_pairs
from conversion.rotary.selection import RotaryMethod, RotarySelection


def low(weights: AttentionWeights, statistics: LayerStatistics, rope_dim: int) -> RotarySelection:
    """Keep the same pairs of lowest frequency in every KV head; drop rotation from the rest.

    ``S_low`` of MHA2MLA (arXiv:2502.14837, section 3.1): ``{f | d/2 - r <= f < d/2}`` with ``r``
    pairs per head, frequencies falling with ``f``. Slow pairs hardly rotate within a text, so
    keeping their rotation keeps little.

    Raises:
        RecipeError: ``rope_dim`` is no multiple of two dimensions per KV head.
    """
    per_head = pairs_per_head("low", weights, rope_dim)
    kept = weights.inv_freq.topk(per_head, largest=False).indices.sort().values
    return select_pairs(weights, kept.expand(weights.key.shape[0], -1))


METHOD = RotaryMethod(low, step=same_in_every_head, reference="arXiv:2502.14837")
