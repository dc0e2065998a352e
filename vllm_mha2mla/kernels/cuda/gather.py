"""Whole contexts out of the paged cache, as expanded attention reads them."""

import triton
import triton.language as tl
from torch import Tensor

TILE = 16  # rows of one program


def gather_rows(
    cache: Tensor, block_table: Tensor, starts: Tensor, longest: int, latents: Tensor, key: Tensor
) -> None:
    """Copy every request's rows: latents beside each other, rotary parts to every group's keys.

    Args:
        cache: the paged cache  # [blocks, block_size, row]
        block_table: blocks of each request  # [requests, max_blocks], int32
        starts: where each request's context begins, and the end  # [requests + 1], int32
        longest: the longest context.
        latents: filled in place  # [tokens, rank]
        key: columns of the rotary part, filled in place  # [tokens, groups, rope]
    """
    _, groups, rope = key.shape
    rank = latents.shape[1]
    _gather[(triton.cdiv(longest, TILE), len(block_table))](
        cache,
        block_table,
        starts,
        latents,
        key,
        *(cache.stride(0), cache.stride(1), cache.shape[1], block_table.stride(0)),
        *(latents.stride(0), key.stride(0), key.stride(1), groups),
        RANK=rank,
        RANK_PADDED=triton.next_power_of_2(rank),
        ROPE=rope,
        ROPE_PADDED=triton.next_power_of_2(max(rope, 1)),
        TILE=TILE,
    )


# These vary from step to step, and a variant for each would be compiled between requests.
@triton.jit(
    do_not_specialize=["table_row", "key_token", "groups"],
    do_not_specialize_on_alignment=["block_table", "starts"],
)
def _gather(
    cache,
    block_table,
    starts,
    latents,
    key,
    cache_block,
    cache_row,
    block_size,
    table_row,
    latents_token,
    key_token,
    key_group,
    groups,
    RANK: tl.constexpr,
    RANK_PADDED: tl.constexpr,
    ROPE: tl.constexpr,
    ROPE_PADDED: tl.constexpr,
    TILE: tl.constexpr,
):
    request = tl.program_id(1)
    start = tl.load(starts + request)
    length = tl.load(starts + request + 1) - start
    position = tl.program_id(0) * TILE + tl.arange(0, TILE)
    there = position < length
    block = tl.load(
        block_table + request.to(tl.int64) * table_row + position // block_size, mask=there, other=0
    )
    row = cache + block.to(tl.int64) * cache_block + (position % block_size) * cache_row
    token = (start + position).to(tl.int64)
    column = tl.arange(0, RANK_PADDED)
    whole = there[:, None] & (column < RANK)[None, :]
    values = tl.load(row[:, None] + column[None, :], mask=whole)
    tl.store(latents + (token * latents_token)[:, None] + column[None, :], values, mask=whole)
    if ROPE:
        column = tl.arange(0, ROPE_PADDED)
        whole = there[:, None] & (column < ROPE)[None, :]
        values = tl.load(row[:, None] + (RANK + column)[None, :], mask=whole)
        for group in range(groups):
            place = key + (token * key_token + group * key_group)[:, None] + column[None, :]
            tl.store(place, values, mask=whole)
