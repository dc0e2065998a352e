"""A matrix of low precision that is stored beside its scales: dequantised when it is read.

Every format here is ``weight = (values - zero point) * scale``. They differ in how many weights
share a scale and in how the values are packed.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from conversion.source.tensor_info import ALL_ROWS

Read = Callable[[str, slice], Tensor]
"""Reads a stored tensor, or some of its rows."""

WORD_BITS = 32


@dataclass(frozen=True)
class ScaledWeight:
    """The stored parts of a matrix, and how they make it up.

    Attributes:
        shape: of the matrix  # [rows, columns]
        values: name of the stored values  # [rows, columns], or packed [rows, words]
        scale: name of the scales: one; or one per block of rows, per block of columns, or both.
        block_rows: rows that share a scale; 0 for all.
        block_columns: columns that share a scale; 0 for all.
        bits: of a value, where words of 32 bits hold several; ``None`` where each is stored alone.
        zero: name of the zero points, one per scale; packed along rows where the values are packed.
        groups: name of the group of every column, where groups are not consecutive: if any is -1,
            they are  # [columns]
    """

    shape: tuple[int, int]
    values: str
    scale: str
    block_rows: int
    block_columns: int
    bits: int | None = None
    zero: str | None = None
    groups: str | None = None

    @property
    def parts(self) -> list[str]:
        """The names of all stored parts."""
        return [part for part in (self.values, self.scale, self.zero, self.groups) if part]

    def scales_shape(self) -> tuple[int, int]:
        """Rows and columns of the scales."""
        blocks = ((self.shape[0], self.block_rows), (self.shape[1], self.block_columns))
        rows, columns = (-(-size // block) if block else 1 for size, block in blocks)
        return rows, columns

    def read(self, read: Read, rows: slice, dtype: torch.dtype) -> Tensor:
        """The matrix, or some of its rows  # [rows, columns]"""
        start, stop, _ = rows.indices(self.shape[0])
        values = read(self.values, slice(start, stop))
        if self.bits is not None:
            values = unpack(values, self.bits)[:, : self.shape[1]]
        scale_rows, scale_columns = self.scales_shape()
        row = torch.arange(start, stop) // self.block_rows if self.block_rows else None
        column = None
        if self.groups is not None:
            column = read(self.groups, ALL_ROWS).long()
        # Columns of the group -1 are in their own order after all.
        if self.block_columns and (column is None or -1 in column):
            column = torch.arange(self.shape[1]) // self.block_columns

        def spread(grid: Tensor) -> Tensor:
            """[scale rows, scale columns] -> [rows, columns], or of size 1 where all share."""
            grid = grid.float().view(scale_rows, scale_columns)
            grid = grid if row is None else grid[row]
            return grid if column is None else grid[:, column]

        weight = values.float()
        if self.zero is not None:
            zero = read(self.zero, ALL_ROWS)
            if self.bits is not None:
                zero = unpack(zero.T, self.bits).T[:scale_rows]
            weight -= spread(zero)
        weight *= spread(read(self.scale, ALL_ROWS))
        return weight.to(dtype)


def unpack(words: Tensor, bits: int) -> Tensor:
    """The signed numbers that words of 32 bits hold, the lowest bits first.

    Args:
        words: int32  # [rows, words]
        bits: of a number; a word holds ``32 // bits``.

    Returns:
        numbers from ``-2^(bits - 1)`` on  # [rows, words * (32 // bits)]
    """
    shifts = torch.arange(WORD_BITS // bits, dtype=torch.int32) * bits
    unsigned = (words.unsqueeze(-1) >> shifts) & ((1 << bits) - 1)
    return (unsigned - (1 << (bits - 1))).flatten(-2).to(torch.int16)
