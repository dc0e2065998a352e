"""Bytes per token of an original's quantised cache, as vLLM lays it out."""

from typing import Any

from conversion.checkpoint.cache_size import CacheFigures
from conversion.evaluation.quantised_cache.kind import CacheKind
from conversion.families.limits import kept_layers
from vllm_mha2mla.config import source_head_dim


def quantised_cache_figures(config: Any, kind: CacheKind, itemsize: int) -> CacheFigures:
    """Count a quantised cache, and the plain one beside it, without layers that cache a window.

    Args:
        config: the original's config.
        kind: the cache.
        itemsize: bytes per number of the model's dtype, which exact layers keep.
    """
    layers, heads = config.num_hidden_layers, config.num_key_value_heads
    head_dim = source_head_dim(config)
    plain = 2 * head_dim * itemsize
    quantised = kind.bytes_per_head(head_dim)
    kept = kept_layers(config)
    counted = [n for n in range(layers) if n not in kept]
    per_layer = [plain if kind.is_exact(n, layers) else quantised for n in counted]
    whole, own = heads * plain * len(counted), heads * sum(per_layer)
    return CacheFigures(bytes_per_token=own, baseline_bytes_per_token=whole, fraction=own / whole)
