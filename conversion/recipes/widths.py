"""Widths that a recipe gives the caches and queries of a source of a certain shape."""

import math

from conversion.errors import RecipeError
from conversion.recipes.methods import METHODS
from conversion.recipes.recipe import DEFAULT_FRACTION, Recipe
from conversion.recipes.targets import NARROW, OFFERED, STEP, WIDE, is_offered, wide_within
from vllm_mha2mla.config import LatentWidths


def cache_widths(recipe: Recipe, kv_heads: int, head_dim: int) -> LatentWidths:
    """Cache widths of a layer: the recipe's own, or the method's share of its cache fraction.

    Raises:
        RecipeError: the widths do not fit the source.
    """
    kv_dim = kv_heads * head_dim
    if recipe.kv_lora_rank is not None and recipe.rope_dim is not None:
        widths = LatentWidths(recipe.kv_lora_rank, recipe.rope_dim)
    else:
        widths = _split(recipe, kv_heads, head_dim)
    step = recipe.strategies()[0].step(kv_heads, head_dim)
    if widths.qk_rope_head_dim % step:
        raise RecipeError(
            f"rope_dim {widths.qk_rope_head_dim}: this rotary strategy on {kv_heads} KV heads "
            f"of {head_dim} dimensions takes multiples of {step}"
        )
    if not is_offered(widths.kv_lora_rank, widths.qk_rope_head_dim, recipe.target):
        raise RecipeError(
            f"target {recipe.target}: rows of {widths.width} numbers ({widths.kv_lora_rank} + "
            f"{widths.qk_rope_head_dim}) are not fast there; give {OFFERED}, or target: any"
        )
    if widths.qk_rope_head_dim > kv_dim:
        raise RecipeError(
            f"rope_dim {widths.qk_rope_head_dim} is more than the source's {kv_dim} key "
            f"dimensions; give at most {kv_dim}"
        )
    if widths.kv_lora_rank > 2 * kv_dim:
        raise RecipeError(
            f"kv_lora_rank {widths.kv_lora_rank} is more than the source's {2 * kv_dim} key "
            f"and value dimensions; give at most {2 * kv_dim}"
        )
    return widths


def mean_width(recipe: Recipe, kv_heads: int, head_dim: int) -> int:
    """Numbers per token and layer that a recipe's cache fraction allows on average."""
    fraction = DEFAULT_FRACTION if recipe.cache_fraction is None else recipe.cache_fraction
    # In floating point 0.29 of 100 numbers is less than 29.
    return int(2 * kv_heads * head_dim * fraction + 1e-9)


def query_rank(recipe: Recipe, hidden: int, qk_norm: bool = False) -> int | None:
    """Width of the query latent of a source of this hidden size; ``None`` without a latent.

    Raises:
        RecipeError: more than the layer's input holds, or queries are normed.
    """
    if recipe.q_lora_rank is not None and qk_norm:
        raise RecipeError(
            f"q_lora_rank {recipe.q_lora_rank}: this model norms its queries, which no product of "
            "two matrices does; leave q_lora_rank out"
        )
    if recipe.q_lora_rank is not None and recipe.q_lora_rank > hidden:
        raise RecipeError(
            f"q_lora_rank {recipe.q_lora_rank} is more than the source's hidden size {hidden}; "
            f"give at most {hidden}"
        )
    return recipe.q_lora_rank


def _split(recipe: Recipe, kv_heads: int, head_dim: int) -> LatentWidths:
    kv_dim = kv_heads * head_dim
    fraction = DEFAULT_FRACTION if recipe.cache_fraction is None else recipe.cache_fraction
    width = mean_width(recipe, kv_heads, head_dim)
    if width >= 2 * kv_dim:
        return _whole(recipe, kv_dim)
    step = recipe.strategies()[0].step(kv_heads, head_dim)
    if recipe.target == "cuda":
        wide = wide_within(width, kv_dim, step)
        if wide is not None:
            return LatentWidths(*wide)
        width = min(width, NARROW) // STEP * STEP
    share = METHODS[recipe.method].rope_share
    rope = min(kv_dim, round(width * share / step) * step)
    if width - rope < 1:
        least = math.ceil(1e4 * (STEP if recipe.target == "cuda" else 1) / (2 * kv_dim)) / 1e4
        raise RecipeError(
            f"cache_fraction {fraction}: leaves {width} numbers per token and layer; give at "
            f"least {least}"
        )
    return LatentWidths(width - rope, rope)


def _whole(recipe: Recipe, kv_dim: int) -> LatentWidths:
    widths = LatentWidths(kv_dim, kv_dim)
    if not is_offered(kv_dim, kv_dim, recipe.target):
        widest = max(width for width in (NARROW, *map(sum, WIDE)) if width < 2 * kv_dim)
        most = math.floor(1e4 * widest / (2 * kv_dim)) / 1e4
        raise RecipeError(
            f"target {recipe.target}: rows of all {2 * kv_dim} numbers of the source's keys and "
            f"values are not fast there; give a cache_fraction of at most {most}, or target: any"
        )
    return widths
