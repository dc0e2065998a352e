"""The tables by which kernels read and write the coded rows of one layer.

Units and columns are counted in pieces (``pieces.py``): those of the latent part, then the first
halves of the rotary pairs, then the second, each followed by padding.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from vllm_mha2mla.coding.codebooks import BITS, DENOMINATOR, codebook
from vllm_mha2mla.coding.row_code import UNIT, CodedRow, RowCode
from vllm_mha2mla.kernels.cuda.pieces import Pieces, pieces_of
from vllm_mha2mla.rope import apply_rotary, rotary_angles

# Positions for which the table of means has one row; a tile has no more rows.
GRANULE = 64
# Codes of more bits are looked up one by one.
PAIRED = 4


@dataclass(frozen=True)
class CodedTables:
    """The coded rows of one layer, as kernels know them.

    Attributes:
        code: bits of every column.
        pieces: of a row.
        units: where each unit begins in a group of 8 rows, in bytes, and its bits; both are 0 for
            padding  # [padded units, 2], int32
        levels: of every number of bits, for a scale of 1: code ``i`` of ``b`` bits at ``2^b + i``;
            no bits are zero  # [512], the activations' dtype
        pairs: the same of two neighbouring codes of up to 4 bits: codes ``i`` and ``k`` at ``2^2b +
            i + 2^b k``, two levels of 16 bits in one number  # [512], int32
        borders: between the levels of ``b`` bits, as a binary search of 8 steps meets them: the
            children of node ``k`` are ``2k`` and ``2k + 1``; those that fewer bits do not need are
            infinite, and code ``i`` is node ``256 + i``  # [9, 256], float32
        inverse_gains: of each unit; 0 for padding  # [padded units], float32
        first_row: the row that a text's first is coded against  # [padded columns], float32
        means: mean of the rotary columns, turned by each multiple of ``GRANULE``: first halves of
            pairs, then second halves  # [granules, 2 * padded half], float32
        turns: cosines of every pair's angles at the positions of a granule, then sines; float16,
            or float32 beside such activations  # [GRANULE, 2 * padded half]
    """

    code: RowCode
    pieces: Pieces
    units: Tensor
    levels: Tensor
    pairs: Tensor
    borders: Tensor
    inverse_gains: Tensor
    first_row: Tensor
    means: Tensor
    turns: Tensor

    def fill(self, other: "CodedTables") -> None:
        """Take over the numbers of another layer's tables with the same code, in place."""
        for field in fields(self):
            tensor = getattr(self, field.name)
            if isinstance(tensor, Tensor):
                tensor.copy_(getattr(other, field.name))

    @property
    def kind(self) -> tuple[Pieces, int, bool]:
        """All that kernels are compiled for."""
        return self.pieces, self.wide, self.narrow_rotary

    @property
    def wide(self) -> int:
        """The number of first pieces that ``pairs`` does not serve."""
        if self.levels.element_size() != 2:
            return self.pieces.count
        wide = [u for u, bits in enumerate(self.code.latent_units) if bits > PAIRED]
        return -(-(wide[-1] + 1) * UNIT // self.pieces.width) if wide else 0

    @property
    def narrow_rotary(self) -> bool:
        """Tell if ``pairs`` serves the rotary part."""
        units = self.code.rotary_units[0]
        return self.levels.element_size() == 2 and max(units, default=0) <= PAIRED


def coded_tables(
    coded: CodedRow, inv_freq: Tensor, dtype: torch.dtype, model_len: int
) -> CodedTables:
    """Make the tables of one layer, on the device of its vectors.

    Args:
        coded: the code of its rows.
        inv_freq: frequency of each rotary pair, float32  # [rope/2]
        dtype: of activations.
        model_len: the longest context.
    """
    code, device = coded.code, inv_freq.device
    widths = code.widths
    pieces = pieces_of(widths.kv_lora_rank, widths.qk_rope_head_dim)
    starts = torch.tensor(code.unit_offsets[:-1], device="cpu") * UNIT
    bits = torch.tensor(code.unit_bits, device="cpu")
    gains = torch.tensor([codebook(b).gain for b in code.unit_bits], device="cpu")
    granules = torch.arange(-(-model_len // GRANULE), device=device) * GRANULE
    means = apply_rotary(coded.rotary_mean.float(), *rotary_angles(granules, inv_freq))
    turns = torch.cat(rotary_angles(torch.arange(GRANULE, device=device), inv_freq), dim=-1)
    return CodedTables(
        code,
        pieces,
        _padded(torch.stack((starts, bits)), code, UNIT).T.int().contiguous().to(device),
        _levels().to(device, dtype),
        _pairs(dtype).to(device),
        _borders().to(device),
        _padded(1 / gains, code, UNIT).to(device),
        _padded(coded.first_row.float(), code, 1).to(device),
        _padded_halves(means, pieces.half),
        _padded_halves(turns, pieces.half).to(
            torch.float32 if dtype == torch.float32 else torch.float16
        ),
    )


def _padded(values: Tensor, code: RowCode, columns: int) -> Tensor:
    """Give every part of a row its padding; a value stands for so many columns."""
    rank, rope = code.widths.kv_lora_rank, code.widths.qk_rope_head_dim
    pieces = pieces_of(rank, rope)
    latent, rotary = values.split((rank // columns, rope // columns), dim=-1)
    room = (pieces.latent - rank) // columns
    latent = torch.nn.functional.pad(latent, (0, room))
    return torch.cat((latent, _padded_halves(rotary, pieces.half // columns)), dim=-1)


def _padded_halves(values: Tensor, width: int) -> Tensor:
    """[..., rope] -> [..., 2 * width]"""
    halves = values.unflatten(-1, (2, -1))
    return torch.nn.functional.pad(halves, (0, width - halves.shape[-1])).flatten(-2)


def _levels() -> Tensor:
    table = torch.zeros(512, device="cpu")
    for bits in BITS:
        table[1 << bits : 2 << bits] = codebook(bits).levels / DENOMINATOR
    return table


def _pairs(dtype: torch.dtype) -> Tensor:
    table = torch.zeros(512, dtype=torch.int32, device="cpu")
    if dtype.itemsize == 2:
        for bits in BITS:
            if bits <= PAIRED:
                levels = (codebook(bits).levels / DENOMINATOR).to(dtype)
                both = torch.stack(torch.meshgrid(levels, levels, indexing="xy"), dim=-1)
                table[1 << 2 * bits : 2 << 2 * bits] = both.view(torch.int32).flatten()
    return table


def _borders() -> Tensor:
    table = torch.full((9, 256), float("inf"), device="cpu")
    for bits in BITS:
        for depth in range(bits):
            # The nodes of a depth are the middles of equal shares of the borders.
            share = 1 << (bits - depth)
            first = 1 << (8 - bits + depth)
            nodes = codebook(bits).borders[share // 2 - 1 :: share]
            table[bits, first : first + len(nodes)] = nodes
    return table
