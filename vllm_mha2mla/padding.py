"""The width of a cached row on each kind of machine.

CPU kernels read rows of any width. GPU kernels load 16 bytes at once, which are 8 numbers of 16
bits: a row of another width is followed by zeros up to the next multiple of 8.
"""

from collections.abc import Sequence
from typing import Literal

from vllm_mha2mla.coding.row_code import RowCode
from vllm_mha2mla.config import LatentWidths

Target = Literal["cpu", "cuda"]

ROW_MULTIPLE: dict[Target, int] = {"cpu": 1, "cuda": 8}
"""Cached rows are a multiple of so many numbers wide."""


def padded_width(widths: LatentWidths, target: Target) -> int:
    """Numbers that one layer caches per token there: ``[c ; k_rope ; zeros]``."""
    multiple = ROW_MULTIPLE[target]
    return -(-widths.width // multiple) * multiple


def cache_bytes_per_token(
    layer_widths: Sequence[LatentWidths],
    bytes_per_number: int,
    target: Target = "cpu",
    codes: Sequence[RowCode] | None = None,
) -> int:
    """Bytes the cache of the whole model takes per token there.

    Args:
        layer_widths: of every layer.
        bytes_per_number: of rows that are stored as they are.
        target: kind of machine.
        codes: of every layer's rows where these are coded; such rows are not padded.
    """
    if codes is not None:
        return sum(code.row_bytes for code in codes)
    return sum(padded_width(widths, target) for widths in layer_widths) * bytes_per_number
