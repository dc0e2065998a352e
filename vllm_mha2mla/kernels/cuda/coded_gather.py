"""Whole contexts out of a cache of coded rows, as expanded attention reads them."""

import triton
import triton.language as tl
from torch import Tensor

from vllm_mha2mla.kernels.cuda.coded_rows import (
    load_groups,
    load_levels,
    load_scales,
    load_turned_mean,
    load_unit_places,
    load_units,
)
from vllm_mha2mla.kernels.cuda.coded_tables import CodedTables

TILE = 16  # rows of one program


def gather_coded_rows(
    cache: Tensor,
    block_table: Tensor,
    starts: Tensor,
    longest: int,
    latents: Tensor,
    key: Tensor,
    tables: CodedTables,
) -> None:
    """Decode every request's rows: latents beside each other, keys' rotary parts to every group.

    Args:
        cache: the paged cache  # [blocks, block_size, row_bytes], uint8
        block_table: blocks of each request  # [requests, max_blocks], int32
        starts: where each request's context begins, and the end  # [requests + 1], int32
        longest: the longest context.
        latents: filled in place  # [tokens, rank]
        key: columns of the rotary part, filled in place  # [tokens, groups, rope]
        tables: of the layer.
    """
    _gather_coded[(triton.cdiv(longest, TILE), len(block_table))](
        cache,
        block_table,
        starts,
        latents,
        key,
        *(tables.units, tables.levels, tables.pairs),
        *(tables.first_row, tables.means, tables.turns),
        *(cache.stride(0), block_table.stride(0), tables.code.row_bytes),
        *(latents.stride(0), key.stride(0), key.stride(1), key.shape[1]),
        *(latents.shape[1], key.shape[2] // 2),
        PIECES=tables.pieces.count,
        PIECE=tables.pieces.width,
        PADDED_HALF=tables.pieces.half,
        WIDE=tables.wide,
        NARROW_ROTARY=tables.narrow_rotary,
        BLOCK_SIZE=cache.shape[1],
        TILE=TILE,
    )


# These vary from step to step or from layer to layer, and a variant for each would be compiled.
@triton.jit(
    do_not_specialize=[
        *("table_row", "key_token", "groups"),
        *("row_bytes", "latents_token", "key_group", "rank", "half"),
    ],
    do_not_specialize_on_alignment=["block_table", "starts"],
)
def _gather_coded(
    cache,
    block_table,
    starts,
    latents,
    key,
    units,
    levels,
    pairs,
    first_row,
    means,
    turns,
    block_stride,
    table_row,
    row_bytes,
    latents_token,
    key_token,
    key_group,
    groups,
    rank,
    half,
    PIECES: tl.constexpr,
    PIECE: tl.constexpr,
    PADDED_HALF: tl.constexpr,
    WIDE: tl.constexpr,
    NARROW_ROTARY: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
):
    request = tl.program_id(1)
    tile = tl.program_id(0) * TILE
    start = tl.load(starts + request)
    length = tl.load(starts + request + 1) - start
    if tile >= length:
        return
    table = block_table + request.to(tl.int64) * table_row
    group = load_groups(table, tile, length, block_stride, row_bytes, BLOCK_SIZE, TILE)
    position = tile + tl.arange(0, TILE)
    token = (start + position).to(tl.int64)
    there = (position < length)[:, None]
    is_first = tl.where(position == 0, 1.0, 0.0)[:, None]

    scale = load_scales(cache, group, row_bytes * 8 - 16, TILE)[:, None]
    column = tl.arange(0, PIECE)
    for i in tl.static_range(PIECES):
        place, bits = load_unit_places(units, i * PIECE // 8, PIECE // 8)
        words = load_units(cache, group, place)
        c = load_levels(words, bits, levels, pairs, TILE, PIECE // 8, i >= WIDE).to(tl.float32)
        c = c * scale + is_first * tl.load(first_row + i * PIECE + column)[None, :]
        target = latents + (token * latents_token)[:, None] + (i * PIECE + column)[None, :]
        whole = there & (i * PIECE + column < rank)[None, :]
        tl.store(target, c.to(latents.dtype.element_ty), mask=whole)
    if PADDED_HALF > 0:
        scale = load_scales(cache, group, row_bytes * 8 - 8, TILE)[:, None]
        first, second = load_turned_mean(means, turns, tile, TILE, PADDED_HALF)
        pair = tl.arange(0, PADDED_HALF)
        whole = there & (pair < half)[None, :]
        for i in tl.static_range(2):
            place, bits = load_unit_places(
                units, (PIECES * PIECE + i * PADDED_HALF) // 8, PADDED_HALF // 8
            )
            words = load_units(cache, group, place)
            k = load_levels(words, bits, levels, pairs, TILE, PADDED_HALF // 8, NARROW_ROTARY)
            k = k.to(tl.float32) * scale + (first if i == 0 else second)
            k = k + is_first * tl.load(first_row + PIECES * PIECE + i * PADDED_HALF + pair)[None, :]
            k = k.to(key.dtype.element_ty)
            target = key + (token * key_token)[:, None] + (i * half + pair)[None, :]
            for g in range(groups):
                tl.store(target + g * key_group, k, mask=whole)
