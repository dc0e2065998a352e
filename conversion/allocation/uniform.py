"""Splits of a budget between rotary and latent numbers, the same in all layers."""

import math

from conversion.recipes.methods import METHODS
from conversion.recipes.recipe import Recipe
from conversion.recipes.targets import NARROW
from conversion.recipes.widths import cache_widths
from vllm_mha2mla.config import LatentWidths

# Rotary parts of the budget that are tried. The one nearest to the method's own gives way to it.
SHARES = (1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2)


def split_candidates(recipe: Recipe, kv_heads: int, head_dim: int) -> list[LatentWidths]:
    """Widths to choose from: all of the same width, the one with the method's own share first.

    The others have other shares, or rotary widths that suit the strategy.

    One entry where nothing is to be chosen: exact widths, the whole cache, ``split: fixed``, a wide
    row for GPUs.

    Args:
        recipe: what to do.
        kv_heads: of the source.
        head_dim: of the source.

    Raises:
        RecipeError: the recipe's widths do not fit the source.
    """
    own = cache_widths(recipe, kv_heads, head_dim)
    kv_dim = kv_heads * head_dim
    if recipe.split == "fixed" or recipe.kv_lora_rank is not None or own.width >= 2 * kv_dim:
        return [own]
    if recipe.target == "cuda" and own.width > NARROW:
        return [own]
    rotary = recipe.strategies()[0]
    step = rotary.step(kv_heads, head_dim)
    published = METHODS[recipe.method].rope_share
    nearest = min(SHARES, key=lambda share: abs(math.log(share / published)))
    ropes = [round(own.width * share / step) * step for share in SHARES if share != nearest]
    ropes += rotary.favoured(kv_heads, head_dim)
    others = {rope for rope in ropes if 0 < rope <= kv_dim and rope < own.width}
    return [own] + [
        LatentWidths(own.width - rope, rope) for rope in sorted(others - {own.qk_rope_head_dim})
    ]
