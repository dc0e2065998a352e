"""Cache bytes per token of a converted checkpoint and of its source."""

from typing import Any

from pydantic import BaseModel

from vllm_mha2mla.coding.row_code import row_codes
from vllm_mha2mla.config import latent_widths, read_provenance
from vllm_mha2mla.padding import Target, cache_bytes_per_token, row_bytes

# Bytes of a number in the cache that coded rows are compared with: a 16-bit one.
PLAIN_BYTES = 2


class CacheFigures(BaseModel):
    """Cache of the converted layers in the checkpoint's dtype, or coded and beside a 16-bit one.

    Layers that keep their attention count in neither: they cache a window, however long the text.
    """

    bytes_per_token: int
    baseline_bytes_per_token: int
    fraction: float


def cache_figures(config: Any, target: Target = "cpu") -> CacheFigures:
    """Cache bytes per token of a converted checkpoint and of its source.

    Args:
        config: of the checkpoint.
        target: kind of machine.
    """
    layer_widths = latent_widths(config)
    codes = row_codes(config)
    kept = read_provenance(config).source.cache_width * number_bytes(config)
    rows = row_bytes(layer_widths, number_bytes(config), target, codes)
    baseline = kept * sum(not widths.kept for widths in layer_widths)
    converted = cache_bytes_per_token(rows, kept)
    return CacheFigures(
        bytes_per_token=converted,
        baseline_bytes_per_token=baseline,
        fraction=converted / baseline,
    )


def number_bytes(config: Any) -> int:
    """Bytes of a number in the original's plain cache that a converted checkpoint is beside."""
    return PLAIN_BYTES if row_codes(config) is not None else int(config.dtype.itemsize)
