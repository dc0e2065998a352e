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


def row_bytes(
    layer_widths: Sequence[LatentWidths],
    bytes_per_number: int,
    target: Target = "cpu",
    codes: Sequence[RowCode] | None = None,
) -> list[int]:
    """Bytes of every layer's rows there; 0 in a layer that keeps the source's attention.

    Args:
        layer_widths: of every layer.
        bytes_per_number: of rows that are stored as they are.
        target: kind of machine.
        codes: of every layer's rows where these are coded; such rows are not padded.
    """
    if codes is not None:
        return [code.row_bytes for code in codes]
    return [padded_width(widths, target) * bytes_per_number for widths in layer_widths]


def rows_beside(widest: int, kept: int) -> int:
    """Rows that take the place of one token's keys and values.

    Args:
        widest: bytes of the widest row.
        kept: bytes of a token's keys and values in a layer that keeps the source's attention.
    """
    return max(1, kept // widest)


def cache_bytes_per_token(rows: Sequence[int], kept: int) -> int:
    """Bytes that each token adds to the cache of the latent layers.

    Beside layers that keep the source's attention, every latent layer takes what the widest row
    takes, and a whole part of their bytes (``attention/pages.py``).

    Args:
        rows: bytes of every layer's rows; 0 in a layer that keeps the source's attention.
        kept: bytes of a token's keys and values in such a layer.
    """
    if all(rows):
        return sum(rows)
    widest, latent = max(rows), sum(row > 0 for row in rows)
    return -(-latent * max(kept, widest) // rows_beside(widest, kept))
