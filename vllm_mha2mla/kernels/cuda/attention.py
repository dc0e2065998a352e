"""Paged attention over latent rows: keys are ``[c ; k_rope]``, values are ``c``, loaded once.

One kernel serves decode, prefill, chunked prefill and their mixtures. The queries of a request are
flattened to (token, head) pairs, ``QUERIES`` of them a program; a program walks tiles of ``TILE``
rows of the context and keeps the running softmax (FlashAttention-2, arXiv:2307.08691).

Scores and outputs are computed transposed,

    S^T = K Q^T  # [TILE, QUERIES],     O^T += C^T P^T  # [chunk, QUERIES],

because matrix instructions want at least 64 rows of their first operand. A tile of cache rows has
them, whereas 32 heads of one token would be padded to twice the work; and both products read the
same tile in shared memory, so a row crosses the memory bus once.

A context is split into equal shares where there are too few queries to keep the GPU busy. Shares
follow from shapes alone (``tuning.py``): nothing here waits for the host, and a step can be
captured in a CUDA graph. ``combine.py`` joins their results.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from vllm_mha2mla.kernels.cuda.coded_attention import attend_coded
from vllm_mha2mla.kernels.cuda.coded_tables import CodedTables
from vllm_mha2mla.kernels.cuda.combine import combine
from vllm_mha2mla.kernels.cuda.pairs import (
    find_pairs,
    find_program,
    load_query,
    softmax_step,
    store_columns,
)
from vllm_mha2mla.kernels.cuda.rows import (
    alignment,
    load_columns,
    load_pages,
    loaded_widths,
    next_power_of_2,
    row_chunks,
    row_offsets,
)
from vllm_mha2mla.kernels.cuda.tuning import (
    Tiles,
    choose_splits,
    choose_tiles,
    coded_shared_memory,
    coded_tiles,
    gpu_of,
    resident,
)

LOG2_E = 1.4426950408889634


def attend(
    query: Tensor,
    cache: Tensor,
    block_table: Tensor,
    query_start_loc: Tensor,
    seq_lens: Tensor,
    max_query_len: int,
    max_seq_len: int,
    scale: float,
    rank: int,
    rope: int,
    out: Tensor,
    lse: Tensor | None = None,
    splits: int | None = None,
    tiles: Tiles | None = None,
    tables: CodedTables | None = None,
) -> None:
    """Causal attention of every request's newest tokens over its cached rows.

    ``reference.latent_attention`` defines the result. Tokens beyond the last request's, which pad a
    CUDA graph, are left as they are; requests without queries or without context are allowed.

    Args:
        query: ``[W_UK^T q_nope ; q_rope]``, the cache's dtype; zero in columns that pad it
            # [tokens, heads, >= rank + rope]
        cache: the paged cache; its rows' padding is finite  # [blocks, block_size, >= rank + rope]
            or, of coded rows  # [blocks, block_size, row_bytes], uint8
        block_table: block numbers of each request  # [requests, max_blocks], int32
        query_start_loc: first query of each request, and the end  # [requests + 1], int32
        seq_lens: context length of each request, new tokens included  # [requests], int32
        max_query_len: no request has more new tokens.
        max_seq_len: no request has a longer context.
        scale: factor of the scores.
        rank: latent columns of a row.
        rope: rotary columns of a row.
        out: attention-weighted latents, filled in place  # [tokens, heads, rank]
        lse: natural logarithm of each softmax's denominator, filled if given; minus infinity
            where there was nothing to attend to  # [tokens, heads], float32, any strides
        splits: shares of each context; by default ``choose_splits`` tells.
        tiles: sizes of the tiles; by default ``choose_tiles`` or ``coded_tiles`` tells.
        tables: where rows are coded, those of the layer; a row is as wide then as it is long.
    """
    tokens, heads, _ = query.shape
    requests = seq_lens.shape[0]
    if tokens == 0 or requests == 0:
        return
    gpu, pairs = gpu_of(cache.device), heads * max_query_len
    if tables is None:
        tiles = tiles or choose_tiles(rank, rope, pairs, cache)
        latent, rotary = loaded_widths(rank, rope, cache)
        if query.shape[2] < latent + rotary:
            query = torch.nn.functional.pad(query, (0, latent + rotary - query.shape[2]))
        shared = tiles.shared_memory(row_chunks(latent, rotary).width, cache.element_size())
    else:
        itemsize = query.element_size()
        tiles = tiles or coded_tiles(tables.pieces, pairs, gpu, itemsize)
        shared = coded_shared_memory(tiles, tables.pieces, gpu, itemsize)
    tiles_per_request = triton.cdiv(pairs, tiles.queries)
    # A mixed batch would leave most of the tiles of its short requests empty.
    search = requests * tiles_per_request > tokens * heads // tiles.queries + requests
    if search:
        programs = tokens * heads // tiles.queries + requests
    else:
        programs = requests * tiles_per_request
    if splits is None:
        room = gpu.processors * resident(tiles, shared, gpu)
        splits = choose_splits(programs, triton.cdiv(max_seq_len, tiles.rows), room)
    partial, state = out, out
    if splits > 1:
        partial = torch.empty(splits, tokens, heads, rank, dtype=torch.float32, device=query.device)
        state = torch.empty(2, splits, tokens, heads, dtype=torch.float32, device=query.device)
    tensors = (
        query,
        cache,
        block_table,
        query_start_loc,
        seq_lens,
        out,
        out if lse is None else lse,
        partial,
        state,
    )
    numbers = (
        requests,
        tokens,
        heads,
        tiles_per_request,
        next_power_of_2(requests).bit_length() if search else 0,
        scale * LOG2_E,
        query.stride(0),
        query.stride(1),
        out.stride(0),
        out.stride(1),
        0 if lse is None else lse.stride(0),
        0 if lse is None else lse.stride(1),
        cache.stride(0),
        block_table.stride(0),
    )
    options = {
        "BLOCK_SIZE": cache.shape[1],
        "QUERIES": tiles.queries,
        "TILE": tiles.rows,
        "SPLIT": splits > 1,
        "WITH_LSE": lse is not None,
        "num_warps": tiles.warps,
    }
    if tables is None:
        chunks = row_chunks(latent, rotary)
        _attend[(programs, splits)](
            *tensors,
            *numbers,
            OUT=rank,
            RANK=latent,
            ROPE=rotary,
            C0=chunks.latent[0],
            C1=chunks.latent[1],
            C2=chunks.latent[2],
            CR=chunks.rotary,
            ROW_STRIDE=cache.stride(1),
            ALIGN=alignment(cache),
            STAGES=tiles.stages,
            **options,
        )
    else:
        attend_coded[(programs, splits)](
            *tensors,
            tables.units,
            tables.levels,
            tables.pairs,
            tables.first_row,
            tables.means,
            tables.turns,
            *numbers,
            rank,
            rope // 2,
            tables.code.row_bytes,
            PIECES=tables.pieces.count,
            PIECE=tables.pieces.width,
            PADDED_HALF=tables.pieces.half,
            WIDE=tables.wide,
            NARROW_ROTARY=tables.narrow_rotary,
            **options,
        )
    if splits > 1:
        combine(partial, state, query_start_loc, out, lse)


@triton.jit(
    do_not_specialize=["requests", "tokens", "tiles_per_request", "search_steps", "table_stride"]
)
def _attend(
    query,
    cache,
    block_table,
    query_start_loc,
    seq_lens,
    out,
    lse,
    partial,
    state,
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
    OUT: tl.constexpr,
    RANK: tl.constexpr,
    ROPE: tl.constexpr,
    C0: tl.constexpr,
    C1: tl.constexpr,
    C2: tl.constexpr,
    CR: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    ROW_STRIDE: tl.constexpr,
    ALIGN: tl.constexpr,
    QUERIES: tl.constexpr,
    TILE: tl.constexpr,
    STAGES: tl.constexpr,
    SPLIT: tl.constexpr,
    WITH_LSE: tl.constexpr,
):
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

    q = query + row * query_token_stride + head.to(tl.int64) * query_head_stride
    q0 = load_query(q, exists, 0, RANK if C1 == 0 else C0, C0)
    acc0 = tl.zeros([C0, QUERIES], tl.float32)
    if C1 > 0:
        q1 = load_query(q, exists, C0, RANK - C0 if C2 == 0 else C1, C1)
        acc1 = tl.zeros([C1, QUERIES], tl.float32)
    if C2 > 0:
        q2 = load_query(q, exists, C0 + C1, RANK - C0 - C1, C2)
        acc2 = tl.zeros([C2, QUERIES], tl.float32)
    if CR > 0:
        qr = load_query(q, exists, RANK, ROPE, CR)
    maximum = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)

    table = block_table + request.to(tl.int64) * table_stride
    position = tl.arange(0, TILE)
    # Block numbers are loaded one tile ahead, so that a tile's rows never wait for them.
    page = load_pages(table, begin, end, BLOCK_SIZE, TILE)
    for tile in tl.range(begin, end, TILE, num_stages=STAGES):
        at = tile + position
        offset = row_offsets(page, at, block_stride, BLOCK_SIZE, ROW_STRIDE, ALIGN)
        page = load_pages(table, tile + TILE, end, BLOCK_SIZE, TILE)

        valid = at < end
        c0 = load_columns(cache, offset, valid, 0, RANK if C1 == 0 else C0, C0)
        s = tl.dot(c0, tl.trans(q0), input_precision="ieee")
        if C1 > 0:
            c1 = load_columns(cache, offset, valid, C0, RANK - C0 if C2 == 0 else C1, C1)
            s = tl.dot(c1, tl.trans(q1), s, input_precision="ieee")
        if C2 > 0:
            c2 = load_columns(cache, offset, valid, C0 + C1, RANK - C0 - C1, C2)
            s = tl.dot(c2, tl.trans(q2), s, input_precision="ieee")
        if CR > 0:
            cr = load_columns(cache, offset, valid, RANK, ROPE, CR)
            s = tl.dot(cr, tl.trans(qr), s, input_precision="ieee")

        seen = valid[:, None] & (at[:, None] < visible[None, :])
        s = tl.where(seen, s * scale, float("-inf"))  # [TILE, QUERIES]
        p, rescale, maximum, total = softmax_step(s, maximum, total)
        weights = p.to(cache.dtype.element_ty)
        acc0 = tl.dot(tl.trans(c0), weights, acc0 * rescale[None, :], input_precision="ieee")
        if C1 > 0:
            acc1 = tl.dot(tl.trans(c1), weights, acc1 * rescale[None, :], input_precision="ieee")
        if C2 > 0:
            acc2 = tl.dot(tl.trans(c2), weights, acc2 * rescale[None, :], input_precision="ieee")

    if SPLIT:
        at = (split * tokens + row) * heads + head
        count = tl.num_programs(1).to(tl.int64) * tokens * heads
        tl.store(state + at, maximum, mask=exists)
        tl.store(state + count + at, total, mask=exists)
        # combine.py does not read what an empty share has left.
        exists = exists & (total > 0)
        target = partial + at * OUT
    else:
        acc_scale = tl.where(total > 0, 1 / tl.where(total > 0, total, 1.0), 0.0)
        acc0 = acc0 * acc_scale[None, :]
        if C1 > 0:
            acc1 = acc1 * acc_scale[None, :]
        if C2 > 0:
            acc2 = acc2 * acc_scale[None, :]
        if WITH_LSE:
            at = lse + row * lse_token_stride + head.to(tl.int64) * lse_head_stride
            tl.store(at, (maximum + tl.log2(total)) / 1.4426950408889634, mask=exists)
        target = out + row * out_token_stride + head.to(tl.int64) * out_head_stride
    store_columns(target, acc0, exists, 0, OUT, C0)
    if C1 > 0:
        store_columns(target, acc1, exists, C0, OUT, C1)
    if C2 > 0:
        store_columns(target, acc2, exists, C0 + C1, OUT, C2)
