"""The widths that coded rows of a layer may have."""

import math
from dataclasses import dataclass

from conversion.errors import RecipeError
from conversion.recipes.recipe import DEFAULT_FRACTION, Recipe
from vllm_mha2mla.coding.row_code import SCALES, UNIT

# Bytes of a number in the original's cache.
ORIGINAL_BYTES = 2
# Rotary columns to choose from, as parts of the original's key dimensions, by the part of the
# bytes up to which they suit.
ROPE_PARTS = {
    0.06: (1 / 12, 1 / 6, 1 / 4),
    0.4: (1 / 4, 1 / 2, 3 / 4),
    math.inf: (1 / 2, 3 / 4, 1),
}
# Ranks whose loss is measured, as parts of the original's row, with the widest; those between are
# interpolated, in steps that make at most so many of them.
RANK_PARTS = (1 / 16, 1 / 5, 2 / 5, 3 / 5)
RANKS = 16


@dataclass(frozen=True)
class WidthGrid:
    """Ranks and rotary columns to choose from; both fill whole units.

    Attributes:
        ropes: rotary columns.
        original: numbers of the original's cache row.
        hidden: numbers of the layer's input, which bound the rank.
        rank: the one rank, where a recipe gives it.
    """

    ropes: tuple[int, ...]
    original: int
    hidden: int
    rank: int | None = None

    def measured_ranks(self, rope: int) -> list[int]:
        """Ranks to measure beside so many rotary columns, rising."""
        if self.rank is not None:
            return [self.rank]
        widest = self._widest(rope)
        parts = {max(1, round(self.original * part / UNIT)) * UNIT for part in RANK_PARTS}
        return sorted({rank for rank in parts if rank < widest} | {widest})

    def ranks(self, rope: int) -> list[int]:
        """Ranks to choose from beside so many rotary columns, rising."""
        measured = self.measured_ranks(rope)
        step = max(1, math.ceil((measured[-1] - measured[0]) / UNIT / RANKS)) * UNIT
        return sorted({*range(measured[-1], measured[0], -step), measured[0]})

    def _widest(self, rope: int) -> int:
        return max(UNIT, min(self.original - rope, self.hidden) // UNIT * UNIT)


def width_grid(recipe: Recipe, kv_heads: int, head_dim: int, hidden: int) -> WidthGrid:
    """The widths to choose from for a source of this shape.

    Raises:
        RecipeError: the recipe's own widths are not those of a coded row, or its bytes are too few
            for the narrowest one.
    """
    kv_dim = kv_heads * head_dim
    # Both halves of the rotary columns fill units.
    step = math.lcm(2 * UNIT, recipe.strategies()[0].step(kv_heads, head_dim))
    if recipe.kv_lora_rank is not None and recipe.rope_dim is not None:
        if recipe.kv_lora_rank % UNIT or recipe.rope_dim % step:
            raise RecipeError(
                f"bits {recipe.bits}: {recipe.kv_lora_rank} + {recipe.rope_dim} numbers; coded "
                f"rows of this source take a kv_lora_rank in multiples of {UNIT} and a rope_dim in "
                f"multiples of {step}; or give bits: 16"
            )
        return WidthGrid((recipe.rope_dim,), 2 * kv_dim, hidden, recipe.kv_lora_rank)
    parts = next(parts for most, parts in ROPE_PARTS.items() if fraction_of(recipe) <= most)
    most = kv_dim // step
    ropes = {min(most, max(1, round(kv_dim * part / step))) * step for part in parts}
    grid = WidthGrid(tuple(sorted(ropes)), 2 * kv_dim, hidden)
    _check_bytes(recipe, grid)
    return grid


def _check_bytes(recipe: Recipe, grid: WidthGrid) -> None:
    assert recipe.row_bits is not None
    rope, original = grid.ropes[0], grid.original * ORIGINAL_BYTES
    columns = grid.measured_ranks(rope)[0] + rope
    least = columns // UNIT * recipe.row_bits[0] + SCALES
    if least > original * fraction_of(recipe) + 1e-9:
        raise RecipeError(
            f"cache_fraction {fraction_of(recipe)}: below the {least} bytes per token and layer of "
            f"the narrowest coded row, {columns} columns of {recipe.row_bits[0]} bits; give at "
            f"least {math.ceil(1e4 * least / original) / 1e4}"
        )


def byte_budget(recipe: Recipe, kv_heads: int, head_dim: int, layers: int) -> int | None:
    """Bytes of a token's rows in all layers that a recipe allows; ``None`` for exact widths."""
    if recipe.kv_lora_rank is not None:
        return None
    full = 2 * kv_heads * head_dim * ORIGINAL_BYTES * layers
    # In floating point 0.29 of 100 bytes is less than 29.
    return int(full * fraction_of(recipe) + 1e-9)


def fraction_of(recipe: Recipe) -> float:
    """The part of the original's bytes that a recipe allows."""
    return DEFAULT_FRACTION if recipe.cache_fraction is None else recipe.cache_fraction
