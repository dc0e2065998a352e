"""The structures of ``csrc/kernel.h`` that describe coded rows."""

import ctypes
import functools
from collections.abc import Sequence
from ctypes import Structure, c_float, c_int8, c_int64, c_void_p

import torch
from torch import Tensor

from vllm_mha2mla.coding.codebooks import BITS, codebook
from vllm_mha2mla.coding.rounding import scale_of
from vllm_mha2mla.coding.row_code import UNIT, CodedRow
from vllm_mha2mla.rope import apply_rotary, rotary_angles

TURNS = 128
"""Positions for which the rotary mean is turned beforehand, as in ``csrc/kernel.h``."""

TABLE_ROWS = 1024
"""Positions for which angles' cosines and sines are tabulated."""

CHUNK = 64  # columns that an integer product sums over

VECTOR = 16  # numbers that a kernel reads at once, behind the end of a table too


class Codebook(Structure):
    """The levels of so many bits."""

    _fields_ = [
        ("levels", c_int8 * 256),
        ("second_levels", c_int8 * 64),
        ("borders", c_float * 256),
        ("inverse_gain2", c_float),
    ]


class Coded(Structure):
    """A layer's coded rows."""

    _fields_ = [
        ("unit_bits", c_void_p),
        ("unit_runs", c_void_p),
        ("latent_units", c_int64),
        ("rotary_units", c_int64),
        *((name, c_void_p) for name in ("books", "scales", "inv_freq", "turned_mean", "first_row")),
        ("frequencies", c_int64),
        *((name, c_void_p) for name in ("frequency", "frequency_of", "turns")),
    ]


class CodedLayer:
    """The tensors with which the kernel codes and decodes a layer's rows.

    Args:
        coded: of the layer.
        inv_freq: frequency of each rotary pair, float32  # [rope/2]
    """

    def __init__(self, coded: CodedRow, inv_freq: Tensor) -> None:
        code = coded.code
        cos, sin = rotary_angles(torch.arange(TURNS), inv_freq)  # [TURNS, rope/2]
        turned = apply_rotary(coded.rotary_mean.float(), cos, sin)  # [TURNS, rope]
        frequency, frequency_of = torch.unique(inv_freq.float(), return_inverse=True)
        frequency = torch.nn.functional.pad(frequency, (0, -len(frequency) % VECTOR))
        # The structure holds their addresses.
        self.tensors = (
            torch.tensor(code.unit_bits),
            torch.tensor(_runs(code.unit_bits)),
            scale_of(torch.arange(256)),
            inv_freq.float().contiguous(),
            torch.nn.functional.pad(turned.flatten(), (0, VECTOR)),
            coded.first_row.float().contiguous(),
            frequency,
            frequency_of.int(),
            _turns(frequency),
        )
        unit_bits, unit_runs, *others = (tensor.data_ptr() for tensor in self.tensors)
        latent_units = len(code.latent_units)
        rotary_units = len(code.unit_bits) - latent_units
        self.width = UNIT * len(code.unit_bits)
        self.structure = Coded(
            *(unit_bits, unit_runs, latent_units, rotary_units, ctypes.addressof(_codebooks())),
            *(*others[:4], len(frequency), *others[4:]),
        )


def _runs(unit_bits: Sequence[int]) -> list[int]:
    """Count the units from each one on that have its bits."""
    runs: list[int] = []
    for i in reversed(range(len(unit_bits))):
        same = i + 1 < len(unit_bits) and unit_bits[i + 1] == unit_bits[i]
        runs.append(runs[-1] + 1 if same else 1)
    return runs[::-1]


@functools.cache
def _codebooks() -> "ctypes.Array[Codebook]":
    """Every codebook, by its bits."""
    books = (Codebook * (max(BITS) + 1))()
    for bits in BITS:
        book = codebook(bits)
        levels = book.levels.int().tolist()
        books[bits].levels[:] = levels * (256 // len(levels))
        index = range(64)
        books[bits].second_levels[:] = [levels[(i >> bits) % len(levels)] for i in index]
        books[bits].borders[: 2**bits - 1] = book.borders.tolist()
        books[bits].inverse_gain2 = book.gain**-2
    return books


def _turns(frequency: Tensor) -> Tensor:
    """``127 [cos ; sin]`` of ``r`` times each frequency, as ``csrc/kernel.h`` orders it  # int8"""
    halves = rotary_angles(torch.arange(TABLE_ROWS), frequency)  # [TABLE_ROWS, frequencies] each
    table = (127 * torch.cat(halves, dim=1)).round().to(torch.int8)  # [TABLE_ROWS, 2 frequencies]
    padded = torch.nn.functional.pad(table, (0, -table.shape[1] % CHUNK))
    # [panels, 16 rows, chunks, 16 quads, 4] -> [panels, chunks, quads, rows, 4]
    return (
        padded.view(TABLE_ROWS // 16, 16, padded.shape[1] // CHUNK, 16, 4)
        .permute(0, 2, 3, 1, 4)
        .contiguous()
    )
