"""Cache bytes per token of a converted checkpoint and of its source."""

from typing import Any

from pydantic import BaseModel

from vllm_mha2mla.coding.row_code import row_codes
from vllm_mha2mla.config import latent_widths, read_provenance
from vllm_mha2mla.padding import cache_bytes_per_token

# Bytes of a number in the cache that coded rows are compared with: a 16-bit one.
PLAIN_BYTES = 2


class CacheFigures(BaseModel):
    """Cache of the whole model in the checkpoint's dtype, or coded and beside a 16-bit one."""

    bytes_per_token: int
    baseline_bytes_per_token: int
    fraction: float


def cache_figures(config: Any) -> CacheFigures:
    """Cache bytes per token of a converted checkpoint and of its source."""
    layer_widths = latent_widths(config)
    codes = row_codes(config)
    itemsize = number_bytes(config)
    baseline = read_provenance(config).source.cache_width * len(layer_widths) * itemsize
    converted = cache_bytes_per_token(layer_widths, itemsize, codes=codes)
    return CacheFigures(
        bytes_per_token=converted,
        baseline_bytes_per_token=baseline,
        fraction=converted / baseline,
    )


def number_bytes(config: Any) -> int:
    """Bytes of a number in the original's plain cache that a converted checkpoint is beside."""
    return PLAIN_BYTES if row_codes(config) is not None else int(config.dtype.itemsize)
