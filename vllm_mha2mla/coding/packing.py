"""Coded rows as bytes, in the order in which every kernel stores them.

Rows come in groups of ``UNIT``, which lie in one block. A group is, for each unit of columns, the
``b`` bytes of each of its rows, and at last the rows' latent scales and their rotary scales:

    [units][UNIT rows][b bytes]  [UNIT rows]  [UNIT rows]

Eight codes of ``b`` bits fill ``b`` bytes: code ``i`` has the bits ``i b`` to ``(i + 1) b - 1``,
the lowest of the first byte first. A row shares no byte with another, so rows can be written at the
same time; and a kernel reads a unit of all rows of a group at once.
"""

import torch
from torch import Tensor

from vllm_mha2mla.coding.row_code import SCALES, UNIT, RowCode


def pack(code: RowCode, codes: Tensor, scales: Tensor) -> Tensor:
    """The bytes of rows, each on its own: units one after the other, then the scales.

    Args:
        code: of the layer.
        codes: # [rows, rank + rope], uint8
        scales: # [rows, SCALES], uint8

    Returns:
        # [rows, row_bytes], uint8
    """
    shifts = torch.arange(UNIT, device=codes.device)
    parts = []
    for bits, of_unit in zip(code.unit_bits, codes.long().split(UNIT, dim=1), strict=True):
        number = (of_unit << (shifts * bits)).sum(1)  # [rows], up to 64 bits
        bytes_of_unit = number[:, None] >> (8 * torch.arange(bits, device=codes.device))
        parts.append((bytes_of_unit & 255).to(torch.uint8))
    return torch.cat((*parts, scales), dim=1)


def unpack(code: RowCode, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and scales of rows; the inverse of :func:`pack`.

    Args:
        code: of the layer.
        rows: # [rows, row_bytes], uint8

    Returns:
        # [rows, rank + rope], uint8 and [rows, SCALES], uint8
    """
    shifts = torch.arange(UNIT, device=rows.device)
    parts = []
    for bits, of_unit in zip(code.unit_bits, rows.long().split(_sizes(code), dim=1), strict=False):
        number = (of_unit << (8 * torch.arange(bits, device=rows.device))).sum(1)  # [rows]
        parts.append(((number[:, None] >> (shifts * bits)) & (2**bits - 1)).to(torch.uint8))
    return torch.cat(parts, dim=1), rows[:, -SCALES:]


def byte_places(code: RowCode, offsets: Tensor) -> Tensor:
    """Where the bytes of rows lie in their blocks.

    Args:
        code: of the layer.
        offsets: rows before each in its block  # [rows], int64

    Returns:
        for each byte of a row as :func:`pack` gives it, bytes from the block's beginning
            # [rows, row_bytes], int64
    """
    begin: list[int] = []  # of the first row of a group, from the group's beginning
    pitch: list[int] = []  # from row to row
    for before, bits in zip(code.unit_offsets, code.unit_bits, strict=False):
        begin += [UNIT * before + byte for byte in range(bits)]
        pitch += [bits] * bits
    before = code.unit_offsets[-1]
    begin += [UNIT * (before + scale) for scale in range(SCALES)]
    pitch += [1] * SCALES
    at, step = (torch.tensor(x, device=offsets.device) for x in (begin, pitch))
    in_group = offsets % UNIT
    group = (offsets - in_group) * code.row_bytes
    return group[:, None] + at + in_group[:, None] * step


def _sizes(code: RowCode) -> tuple[int, ...]:
    return (*code.unit_bits, SCALES)
