"""Paged attention over coded rows: ``attention.py`` with rows that are decoded as they are read.

A tile of rows is decoded once for all queries of a program, piece by piece of its columns, to
levels in the queries' dtype, which are exact there. A row's scale is a factor of its score and of
its weight instead of all its columns: with levels ``L`` and scale ``a`` of the latent part,

    S^T = a (L Q^T) + K_rope Q_rope^T,     O^T += L^T (a P)^T

The rotary part, far narrower, is decoded to the keys themselves: its scale times its levels, and
the mean of keys, turned by the row's position.

Row 0 of a request is its first token's, coded as its difference from ``first_row``. It is attended
before all others, in float32: the running softmax begins with it.
"""

import triton
import triton.language as tl

from vllm_mha2mla.kernels.cuda.coded_rows import (
    load_groups,
    load_levels,
    load_scales,
    load_turned_mean,
    load_unit_places,
    load_units,
)
from vllm_mha2mla.kernels.cuda.pairs import (
    find_pairs,
    find_program,
    load_query,
    softmax_step,
    store_columns,
)


# One compiled kernel serves all widths that have the same pieces.
@triton.jit(
    do_not_specialize=[
        *("requests", "tokens", "tiles_per_request", "search_steps", "table_stride"),
        *("query_head_stride", "out_head_stride", "rank", "half", "row_bytes"),
    ]
)
def attend_coded(
    query,
    cache,
    block_table,
    query_start_loc,
    seq_lens,
    out,
    lse,
    partial,
    state,
    units,
    levels,
    pairs,
    first_row,
    means,
    turns,
    requests,
    tokens,
    heads,
    tiles_per_request,
    search_steps,  # 0 where every request has tiles_per_request
    scale,  # times log2(e): powers of two are the fast ones
    query_token_stride,
    query_head_stride,
    out_token_stride,
    out_head_stride,
    lse_token_stride,
    lse_head_stride,
    block_stride,
    table_stride,
    rank,
    half,
    row_bytes,
    PIECES: tl.constexpr,  # of the latent part
    PIECE: tl.constexpr,  # columns of each
    PADDED_HALF: tl.constexpr,
    WIDE: tl.constexpr,  # the first pieces, whose codes may have more than 4 bits
    NARROW_ROTARY: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    QUERIES: tl.constexpr,
    TILE: tl.constexpr,
    SPLIT: tl.constexpr,
    WITH_LSE: tl.constexpr,
):
    """Attend as ``attention.attend`` says."""
    program = tl.program_id(0)
    split = tl.program_id(1)
    request, first = find_program(
        program, query_start_loc, requests, heads, tiles_per_request, search_steps, QUERIES
    )
    start = tl.load(query_start_loc + request)
    new = tl.load(query_start_loc + request + 1) - start
    if first >= new * heads:
        return
    length = tl.load(seq_lens + request)
    row, head, exists, visible, end = find_pairs(start, new, length, first, heads, QUERIES)

    share = tl.cdiv(tl.cdiv(end, TILE), tl.num_programs(1)) * TILE
    begin = split * share
    end = tl.minimum(begin + share, end)
    table = block_table + request.to(tl.int64) * table_stride

    head_offset = tl.multiple_of(head.to(tl.int64) * query_head_stride, 8)
    q = query + row * query_token_stride + head_offset
    queries = ()
    places = ()
    accumulators = ()
    for i in tl.static_range(PIECES):
        queries = queries + (load_query(q, exists, i * PIECE, rank - i * PIECE, PIECE),)
        places = places + (load_unit_places(units, i * PIECE // 8, PIECE // 8),)
        accumulators = accumulators + (tl.zeros([PIECE, QUERIES], tl.float32),)
    if PADDED_HALF > 0:
        latent_units: tl.constexpr = PIECES * PIECE // 8
        q_first = load_query(q, exists, rank, half, PADDED_HALF)
        q_second = load_query(q, exists, rank + half, half, PADDED_HALF)
        first_place, first_bits = load_unit_places(units, latent_units, PADDED_HALF // 8)
        second_place, second_bits = load_unit_places(
            units, latent_units + PADDED_HALF // 8, PADDED_HALF // 8
        )
    maximum = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)

    if begin == 0 and end > 0:
        group = load_groups(table, 0, 1, block_stride, row_bytes, BLOCK_SIZE, 8)
        a = load_scales(cache, group, row_bytes * 8 - 16, 8)
        s = tl.zeros([QUERIES], tl.float32)
        begun = ()
        for i in tl.static_range(PIECES):
            words = load_units(cache, group, places[i][0])
            c = load_levels(words, places[i][1], levels, pairs, 8, PIECE // 8, i >= WIDE)
            c = _row_0(c, a) + tl.load(first_row + i * PIECE + tl.arange(0, PIECE))
            s += tl.sum(queries[i].to(tl.float32) * c[None, :], 1)
            begun = begun + (c[:, None] + tl.zeros([1, QUERIES], tl.float32),)
        accumulators = begun
        if PADDED_HALF > 0:
            b = load_scales(cache, group, row_bytes * 8 - 8, 8)
            pair = tl.arange(0, PADDED_HALF)
            at = first_row + latent_units * 8 + pair
            words = load_units(cache, group, first_place)
            k = load_levels(*(words, first_bits, levels, pairs, 8, PADDED_HALF // 8, NARROW_ROTARY))
            k = _row_0(k, b) + tl.load(at) + tl.load(means + pair)
            s += tl.sum(q_first.to(tl.float32) * k[None, :], 1)
            words = load_units(cache, group, second_place)
            k = load_levels(
                *(words, second_bits, levels, pairs, 8, PADDED_HALF // 8, NARROW_ROTARY)
            )
            k = _row_0(k, b) + tl.load(at + PADDED_HALF) + tl.load(means + PADDED_HALF + pair)
            s += tl.sum(q_second.to(tl.float32) * k[None, :], 1)
        maximum = tl.where(visible > 0, s * scale, float("-inf"))
        total = tl.where(visible > 0, 1.0, 0.0)

    position = tl.arange(0, TILE)
    # One stage: Triton 3.6 moves loads that others depend on to where their addresses are wrong.
    for tile in tl.range(begin, end, TILE, num_stages=1):
        group = load_groups(table, tile, end, block_stride, row_bytes, BLOCK_SIZE, TILE)
        a = load_scales(cache, group, row_bytes * 8 - 16, TILE)
        s = tl.zeros([TILE, QUERIES], tl.float32)
        if PADDED_HALF > 0:
            b = load_scales(cache, group, row_bytes * 8 - 8, TILE)[:, None]
            m_first, m_second = load_turned_mean(means, turns, tile, TILE, PADDED_HALF)
            words = load_units(cache, group, first_place)
            k = load_levels(
                *(words, first_bits, levels, pairs, TILE, PADDED_HALF // 8, NARROW_ROTARY)
            )
            k = (k.to(tl.float32) * b + m_first).to(query.dtype.element_ty)
            s = tl.dot(k, tl.trans(q_first), s, input_precision="ieee")
            words = load_units(cache, group, second_place)
            k = load_levels(
                *(words, second_bits, levels, pairs, TILE, PADDED_HALF // 8, NARROW_ROTARY)
            )
            k = (k.to(tl.float32) * b + m_second).to(query.dtype.element_ty)
            s = tl.dot(k, tl.trans(q_second), s, input_precision="ieee")
            s = s * (1 / a)[:, None]
        rows = ()
        for i in tl.static_range(PIECES):
            words = load_units(cache, group, places[i][0])
            c = load_levels(words, places[i][1], levels, pairs, TILE, PIECE // 8, i >= WIDE)
            s = tl.dot(c, tl.trans(queries[i]), s, input_precision="ieee")
            rows = rows + (c,)

        at = tile + position
        seen = ((at > 0) & (at < end))[:, None] & (at[:, None] < visible[None, :])
        s = tl.where(seen, s * (a * scale)[:, None], float("-inf"))  # [TILE, QUERIES]
        p, rescale, maximum, total = softmax_step(s, maximum, total)
        weights = (p * a[:, None]).to(query.dtype.element_ty)
        summed = ()
        for i in tl.static_range(PIECES):
            acc = accumulators[i] * rescale[None, :]
            summed = summed + (tl.dot(tl.trans(rows[i]), weights, acc, input_precision="ieee"),)
        accumulators = summed

    if SPLIT:
        at = (split * tokens + row) * heads + head
        count = tl.num_programs(1).to(tl.int64) * tokens * heads
        tl.store(state + at, maximum, mask=exists)
        tl.store(state + count + at, total, mask=exists)
        # combine.py does not read what an empty share has left.
        exists = exists & (total > 0)
        target = partial + at * rank
        factor = tl.full([QUERIES], 1.0, tl.float32)
    else:
        factor = tl.where(total > 0, 1 / tl.where(total > 0, total, 1.0), 0.0)
        if WITH_LSE:
            at = lse + row * lse_token_stride + head.to(tl.int64) * lse_head_stride
            tl.store(at, (maximum + tl.log2(total)) / 1.4426950408889634, mask=exists)
        target = out + row * out_token_stride + head.to(tl.int64) * out_head_stride
    for i in tl.static_range(PIECES):
        acc = accumulators[i] * factor[None, :]
        store_columns(target, acc, exists, i * PIECE, rank, PIECE)


@triton.jit
def _row_0(levels, scales):
    """Give the first of 8 rows  # [columns], float32."""
    first = (tl.arange(0, 8) == 0)[:, None]
    return tl.sum(tl.where(first, levels.to(tl.float32) * scales[:, None], 0.0), 0)
