"""Description of a layer's coded rows: the bits of every column, and what is known beforehand.

A row ``[latent ; first halves of rotary pairs ; second halves]`` is made of units of ``UNIT``
consecutive columns with the same bits. Both halves of a rotary pair have the same bits, because
RoPE turns them into one another.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from vllm_mha2mla.coding.codebooks import BITS
from vllm_mha2mla.config import LatentConfig, LatentWidths, latent_widths
from vllm_mha2mla.errors import CheckpointError

UNIT = 8
"""Columns of a unit, and rows that are stored together: 8 codes of ``b`` bits are ``b`` bytes."""

SCALES = 2
"""Bytes of a row's scales: one for the latent, one for the rotary columns."""


@dataclass(frozen=True)
class RowCode:
    """The bits of one layer's rows.

    Attributes:
        widths: of the row.
        unit_bits: bits of a column in each unit  # [width / UNIT]
    """

    widths: LatentWidths
    unit_bits: tuple[int, ...]

    def __post_init__(self) -> None:
        rank, rope = self.widths.kv_lora_rank, self.widths.qk_rope_head_dim
        if rank % UNIT or rope % (2 * UNIT) or len(self.unit_bits) * UNIT != rank + rope:
            raise CheckpointError(
                f"config.json: row_bits_per_layer has {len(self.unit_bits)} units of {UNIT} "
                f"columns for kv_lora_rank {rank} and qk_rope_head_dim {rope}; convert the model "
                "again"
            )
        unknown = set(self.unit_bits) - set(BITS)
        if unknown:
            raise CheckpointError(
                f"config.json: row_bits_per_layer: {min(unknown)} bits; this release reads "
                f"{', '.join(map(str, BITS))}; upgrade with: pip install -U vllm-mha2mla"
            )
        first, second = self.rotary_units
        if first != second:
            raise CheckpointError(
                "config.json: row_bits_per_layer: the halves of rotary pairs differ in bits; "
                "convert the model again"
            )

    @property
    def latent_units(self) -> tuple[int, ...]:
        """Bits of the latent's units."""
        return self.unit_bits[: self.widths.kv_lora_rank // UNIT]

    @property
    def rotary_units(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Bits of the units of first and of second halves."""
        rotary = self.unit_bits[self.widths.kv_lora_rank // UNIT :]
        return rotary[: len(rotary) // 2], rotary[len(rotary) // 2 :]

    @cached_property
    def column_bits(self) -> tuple[int, ...]:
        """Bits of every column  # [width]"""
        return tuple(bits for bits in self.unit_bits for _ in range(UNIT))

    @property
    def row_bytes(self) -> int:
        """Bytes of a row, its scales included; 0 in a layer that caches no latents."""
        return sum(self.unit_bits) + SCALES if self.unit_bits else 0

    @cached_property
    def unit_offsets(self) -> tuple[int, ...]:
        """Bytes of a row before each unit, and before the scales  # [units + 1]"""
        offsets = [0]
        for bits in self.unit_bits:
            offsets.append(offsets[-1] + bits)
        return tuple(offsets)


@dataclass(frozen=True)
class CodedRow:
    """All that a kernel needs to code a layer's rows and to decode them.

    Attributes:
        code: the bits.
        rotary_mean: ``m``: mean of the rotary columns before the turn, float32  # [rope]
        first_row: ``f``: what a text's first row is coded against, float32  # [rank + rope]
    """

    code: RowCode
    rotary_mean: Tensor
    first_row: Tensor


def row_codes(config: LatentConfig) -> list[RowCode] | None:
    """The code of every layer's rows; ``None`` where rows are stored as they are.

    Raises:
        CheckpointError: the config's description is impossible.
    """
    per_layer: Sequence[Sequence[int]] | None = config.row_bits_per_layer
    if per_layer is None:
        return None
    widths = latent_widths(config)
    if len(per_layer) != len(widths):
        raise CheckpointError(
            f"config.json: row_bits_per_layer has {len(per_layer)} entries for {len(widths)} "
            "layers; convert the model again"
        )
    return [
        RowCode(of_layer, tuple(bits)) for of_layer, bits in zip(widths, per_layer, strict=True)
    ]


def served_codes(config: LatentConfig, cache_dtype: str) -> list[RowCode] | None:
    """The code of every layer's rows as an engine stores them; ``None`` where it stores numbers.

    Args:
        config: of the checkpoint.
        cache_dtype: vLLM's ``--kv-cache-dtype``; all but ``auto`` ask for numbers.
    """
    codes = row_codes(config)
    return codes if cache_dtype == "auto" else None
