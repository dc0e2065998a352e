"""The original under vLLM's own quantised caches: the rival of a conversion.

Each kind of cache is a file with the arithmetic of vLLM 0.32's kernels. Rounding is applied to keys
and values as they enter the cache of a transformers model, in float32.
"""

from conversion.evaluation.quantised_cache.attach import quantised_cache
from conversion.evaluation.quantised_cache.kind import CacheKind
from conversion.evaluation.quantised_cache.kinds import KINDS, chosen_kinds
from conversion.evaluation.quantised_cache.size import quantised_cache_figures

__all__ = ["KINDS", "CacheKind", "chosen_kinds", "quantised_cache", "quantised_cache_figures"]
