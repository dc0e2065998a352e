"""From a layer's attention and its statistics to the tensors of latent attentions."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from torch import Tensor

from conversion.calibration.statistics import LayerStatistics
from conversion.coding.row_maps import RowMaps
from conversion.families import AttentionWeights
from conversion.latent.factors import LatentFactors, latent_target
from conversion.layers.assemble import assemble
from conversion.layers.balance import balanced, column_factors
from conversion.layers.query import compress_query
from conversion.recipes.recipe import Recipe
from conversion.rotary.selection import RotarySelection
from vllm_mha2mla.config import LatentWidths


def latent_tensors(
    weights: AttentionWeights,
    statistics: LayerStatistics,
    layer_widths: Sequence[LatentWidths],
    recipe: Recipe,
    bias: bool,
) -> Iterator[tuple[LatentWidths, dict[str, Tensor], RowMaps]]:
    """Converted tensors at several widths, with the maps around the rows of each.

    They can be half as large as the source's layer. Once the next are asked for, nothing here holds
    the last ones.

    Args:
        weights: the source's attention.
        statistics: of the layer.
        layer_widths: cache widths to convert to; those of one rotary width stand together.
        recipe: how to convert.
        bias: whether the converted projections of queries and rows have biases.
    """
    heads = len(weights.query)
    for widths, selection, factors in _factors(weights, statistics, layer_widths, recipe):
        tensors = assemble(weights, statistics, selection, factors, bias)
        columns = column_factors(tensors, heads, widths)
        tensors = balanced(tensors, heads, widths)
        maps = _row_maps(tensors, selection, columns[widths.kv_lora_rank :], len(weights.key))
        rank = recipe.q_lora_rank
        if rank is not None:
            tensors = compress_query(tensors, weights, statistics, widths, rank)
        yield widths, tensors, maps
        del tensors, maps


def _factors(
    weights: AttentionWeights,
    statistics: LayerStatistics,
    layer_widths: Sequence[LatentWidths],
    recipe: Recipe,
) -> Iterator[tuple[LatentWidths, RotarySelection, LatentFactors]]:
    """Selection and factors at these widths; one selection per rotary width."""
    choose, factorise = recipe.strategies()
    for rope, group in groupby(layer_widths, key=lambda widths: widths.qk_rope_head_dim):
        same_rope = list(group)
        ranks = [widths.kv_lora_rank for widths in same_rope]
        selection = choose(weights, statistics, rope)
        target = latent_target(weights, statistics, selection, recipe.key_weight)
        if factorise.nested:
            largest = factorise(target, max(ranks))
            of_rank = {rank: largest.truncated(rank) for rank in ranks}
        else:
            of_rank = {rank: factorise(target, rank) for rank in ranks}
        del target
        for widths in same_rope:
            yield widths, selection, of_rank[widths.kv_lora_rank]


def _row_maps(
    tensors: dict[str, Tensor], selection: RotarySelection, factors: Tensor, kv_heads: int
) -> RowMaps:
    """The maps around the rows of balanced tensors.

    Args:
        tensors: the ``self_attn`` tensors.
        selection: what stays in RoPE.
        factors: of the rotary columns, which balancing took from the queries  # [rope]
        kv_heads: of the source.
    """
    down = tensors["kv_a_proj_with_mqa.weight"]
    return RowMaps(
        down=down,
        bias=tensors.get("kv_a_proj_with_mqa.bias"),
        up=tensors["kv_b_proj.weight"].unflatten(0, (kv_heads, -1)),
        query_nope=selection.query_nope,
        query_rope=selection.query_rope / factors[:, None],
    )
