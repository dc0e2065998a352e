"""Cache bytes per token of a converted checkpoint and of its source."""

from typing import Any

from pydantic import BaseModel

from vllm_mha2mla.config import latent_widths, read_provenance
from vllm_mha2mla.padding import cache_bytes_per_token


class CacheFigures(BaseModel):
    """Cache of the whole model, in the checkpoint's dtype."""

    bytes_per_token: int
    baseline_bytes_per_token: int
    fraction: float


def cache_figures(config: Any) -> CacheFigures:
    """Cache bytes per token of a converted checkpoint and of its source."""
    layer_widths = latent_widths(config)
    itemsize = config.dtype.itemsize
    baseline = read_provenance(config).source.cache_width * len(layer_widths) * itemsize
    converted = cache_bytes_per_token(layer_widths, itemsize)
    return CacheFigures(
        bytes_per_token=converted,
        baseline_bytes_per_token=baseline,
        fraction=converted / baseline,
    )
