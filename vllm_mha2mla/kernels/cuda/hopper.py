"""The attention of ``attention.py`` for Hopper, with its copies and products scheduled by hand.

The sums are the same, in the same transposed form. Triton's pipeliner, though, wants one tile more
in shared memory than are on their way, and rows of 448 or 512 latents have no room for three: there
it starts a tile's loads when the products of the one before are done. Written in Gluon, Triton's
lower level, two tiles suffice: each is replaced as soon as its products are done, while the loads
of the other are under way. Threads are laid out so that each copies four rows of a tile, not up to
32, and has as few addresses to compute. A block's number is looked up while products run.

Gluon is experimental, and its interpreter does not know Hopper's instructions. ``attention.py``
does without this file where it cannot be imported.
"""

from typing import Any

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    warpgroup_mma,
    warpgroup_mma_wait,
)

# Gluon has renamed it since Triton 3.6, and left the old name as one that raises.
copy_async: Any = getattr(async_copy, "async_load", None) or async_copy.async_copy_global_to_shared


@gluon.jit(
    do_not_specialize=["requests", "tokens", "tiles_per_request", "search_steps", "table_stride"]
)
def attend_on_hopper(
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
    search_steps,
    scale,
    query_token_stride,
    query_head_stride,
    out_token_stride,
    out_head_stride,
    lse_token_stride,
    lse_head_stride,
    block_stride,
    table_stride,
    OUT: gl.constexpr,
    RANK: gl.constexpr,
    ROPE: gl.constexpr,
    C0: gl.constexpr,
    C1: gl.constexpr,
    C2: gl.constexpr,
    CR: gl.constexpr,
    BLOCK_SIZE: gl.constexpr,
    ROW_STRIDE: gl.constexpr,
    ALIGN: gl.constexpr,
    QUERIES: gl.constexpr,
    TILE: gl.constexpr,
    STAGES: gl.constexpr,
    SPLIT: gl.constexpr,
    WITH_LSE: gl.constexpr,
):
    """Attend as ``attention._attend`` does: the same arguments, four warps."""
    COPY: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    MMA: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, QUERIES, 16])
    SHARED: gl.constexpr = gl.NVMMASharedLayout(128, 16, 2)
    WEIGHTS: gl.constexpr = gl.NVMMASharedLayout(min(128, 2 * QUERIES), 16, 2)
    PAIR: gl.constexpr = gl.SliceLayout(0, MMA)
    dtype: gl.constexpr = cache.dtype.element_ty
    K0: gl.constexpr = RANK if C1 == 0 else C0
    K1: gl.constexpr = RANK - C0 if C2 == 0 else C1
    K2: gl.constexpr = RANK - C0 - C1

    program = gl.program_id(0)
    split = gl.program_id(1)
    if search_steps > 0:
        request, first = _find_request(
            query_start_loc, requests, heads, program, search_steps, QUERIES
        )
    else:
        request = program // tiles_per_request
        first = (program % tiles_per_request) * QUERIES
    start = gl.load(query_start_loc + request)
    new = gl.load(query_start_loc + request + 1) - start
    if first >= new * heads:
        return
    length = gl.load(seq_lens + request)
    last_token = (gl.minimum(first + QUERIES, new * heads) - 1) // heads
    end = length - new + last_token + 1
    share = gl.cdiv(gl.cdiv(end, TILE), gl.num_programs(1)) * TILE
    begin = split * share
    end = gl.minimum(begin + share, end)
    table = block_table + request.to(gl.int64) * table_stride

    # The copies of the first tiles, before anything waits.
    s0 = gl.allocate_shared_memory(dtype, [STAGES, TILE, C0], SHARED)
    s1 = s0
    s2 = s0
    sr = s0
    if C1 > 0:
        s1 = gl.allocate_shared_memory(dtype, [STAGES, TILE, C1], SHARED)
    if C2 > 0:
        s2 = gl.allocate_shared_memory(dtype, [STAGES, TILE, C2], SHARED)
    if CR > 0:
        sr = gl.allocate_shared_memory(dtype, [STAGES, TILE, CR], SHARED)
    for stage in gl.static_range(STAGES):
        row, valid = _rows(
            cache, table, begin + stage * TILE, end, block_stride, COPY, BLOCK_SIZE, ROW_STRIDE,
            ALIGN, TILE,
        )  # fmt: skip
        _copy_columns(s0.index(stage), row, valid, COPY, 0, K0, C0)
        if C1 > 0:
            _copy_columns(s1.index(stage), row, valid, COPY, C0, K1, C1)
        if C2 > 0:
            _copy_columns(s2.index(stage), row, valid, COPY, C0 + C1, K2, C2)
        if CR > 0:
            _copy_columns(sr.index(stage), row, valid, COPY, RANK, ROPE, CR)
        async_copy.commit_group()

    pair = first + gl.arange(0, QUERIES, gl.SliceLayout(1, COPY))
    q = query + (start + pair // heads).to(gl.int64) * query_token_stride
    q += (pair % heads).to(gl.int64) * query_head_stride
    present = pair < new * heads
    q0 = _share_query(q, present, COPY, SHARED, 0, K0, C0, QUERIES)
    acc0 = gl.zeros([C0, QUERIES], gl.float32, MMA)
    if C1 > 0:
        q1 = _share_query(q, present, COPY, SHARED, C0, K1, C1, QUERIES)
        acc1 = gl.zeros([C1, QUERIES], gl.float32, MMA)
    if C2 > 0:
        q2 = _share_query(q, present, COPY, SHARED, C0 + C1, K2, C2, QUERIES)
        acc2 = gl.zeros([C2, QUERIES], gl.float32, MMA)
    if CR > 0:
        qr = _share_query(q, present, COPY, SHARED, RANK, ROPE, CR, QUERIES)
    weights = gl.allocate_shared_memory(dtype, [TILE, QUERIES], WEIGHTS)
    fence_async_shared()

    pair = first + gl.arange(0, QUERIES, PAIR)
    visible = length - new + pair // heads + 1
    maximum = gl.full([QUERIES], float("-inf"), gl.float32, PAIR)
    # Each row's share of the sums is kept apart: to add them up is work for the end.
    total = gl.zeros([TILE, QUERIES], gl.float32, MMA)
    nothing = gl.zeros([TILE, QUERIES], gl.float32, MMA)
    position = gl.arange(0, TILE, gl.SliceLayout(1, MMA))
    stage = begin * 0
    for tile in range(begin, end, TILE):
        async_copy.wait_group(STAGES - 1)
        k0 = s0.index(stage)
        s = warpgroup_mma(k0, q0.permute((1, 0)), nothing, use_acc=False, is_async=True)
        if C1 > 0:
            k1 = s1.index(stage)
            s = warpgroup_mma(k1, q1.permute((1, 0)), s, is_async=True)
        if C2 > 0:
            k2 = s2.index(stage)
            s = warpgroup_mma(k2, q2.permute((1, 0)), s, is_async=True)
        if CR > 0:
            s = warpgroup_mma(sr.index(stage), qr.permute((1, 0)), s, is_async=True)
        row, valid = _rows(
            cache, table, tile + STAGES * TILE, end, block_stride, COPY, BLOCK_SIZE, ROW_STRIDE,
            ALIGN, TILE,
        )  # fmt: skip
        s = warpgroup_mma_wait(0, deps=[s])

        at = (tile + position)[:, None]
        s = gl.where((at < end) & (at < visible[None, :]), s * scale, float("-inf"))
        new_maximum = gl.maximum(maximum, gl.max(s, 0))
        reference = gl.where(new_maximum == float("-inf"), 0.0, new_maximum)
        p = gl.exp2(s - reference[None, :])
        rescale = gl.exp2(maximum - reference)
        total = total * rescale[None, :] + p
        maximum = new_maximum
        weights.store(p.to(dtype))
        fence_async_shared()
        acc0 = warpgroup_mma(k0.permute((1, 0)), weights, acc0 * rescale[None, :], is_async=True)
        if C1 > 0:
            acc1 = warpgroup_mma(
                k1.permute((1, 0)), weights, acc1 * rescale[None, :], is_async=True
            )
        if C2 > 0:
            acc2 = warpgroup_mma(
                k2.permute((1, 0)), weights, acc2 * rescale[None, :], is_async=True
            )
        acc0 = warpgroup_mma_wait(0, deps=[acc0])
        if C1 > 0:
            acc1 = warpgroup_mma_wait(0, deps=[acc1])
        if C2 > 0:
            acc2 = warpgroup_mma_wait(0, deps=[acc2])

        _copy_columns(k0, row, valid, COPY, 0, K0, C0)
        if C1 > 0:
            _copy_columns(k1, row, valid, COPY, C0, K1, C1)
        if C2 > 0:
            _copy_columns(k2, row, valid, COPY, C0 + C1, K2, C2)
        if CR > 0:
            _copy_columns(sr.index(stage), row, valid, COPY, RANK, ROPE, CR)
        async_copy.commit_group()
        stage = gl.where(stage == STAGES - 1, 0, stage + 1)
    async_copy.wait_group(0)
    total = gl.sum(total, 0)

    token = (start + pair // heads).to(gl.int64)
    head = (pair % heads).to(gl.int64)
    exists = pair < new * heads
    if SPLIT:
        at = (split * tokens + token) * heads + head
        count = gl.num_programs(1).to(gl.int64) * tokens * heads
        gl.store(state + at, maximum, mask=exists)
        gl.store(state + count + at, total, mask=exists)
        # combine.py does not use what an empty share has left.
        exists = exists & (total > 0)
        target = partial + at * OUT
    else:
        normal = gl.where(total > 0, 1 / gl.where(total > 0, total, 1.0), 0.0)
        acc0 = acc0 * normal[None, :]
        if C1 > 0:
            acc1 = acc1 * normal[None, :]
        if C2 > 0:
            acc2 = acc2 * normal[None, :]
        if WITH_LSE:
            at = lse + token * lse_token_stride + head * lse_head_stride
            gl.store(at, (maximum + gl.log2(total)) / 1.4426950408889634, mask=exists)
        target = out + token * out_token_stride + head * out_head_stride
    _store_columns(target, acc0, exists, 0, OUT, C0)
    if C1 > 0:
        _store_columns(target, acc1, exists, C0, OUT, C1)
    if C2 > 0:
        _store_columns(target, acc2, exists, C0 + C1, OUT, C2)


@gluon.jit
def _rows(
    cache,
    table,
    first,
    end,
    block_stride,
    COPY: gl.constexpr,
    BLOCK_SIZE: gl.constexpr,
    ROW_STRIDE: gl.constexpr,
    ALIGN: gl.constexpr,
    TILE: gl.constexpr,
):
    """Give where each row of a tile begins, and which rows exist  # [TILE], [TILE]."""
    token = first + gl.arange(0, TILE, gl.SliceLayout(1, COPY))
    valid = token < end
    page = gl.load(table + token // BLOCK_SIZE, mask=valid, other=0).to(gl.int64)
    offset = page * block_stride + (token % BLOCK_SIZE) * ROW_STRIDE
    return cache + gl.multiple_of(offset, ALIGN), valid


@gluon.jit
def _copy_columns(
    target,
    row,
    valid,
    COPY: gl.constexpr,
    FIRST: gl.constexpr,
    COUNT: gl.constexpr,
    CHUNK: gl.constexpr,
):
    """Start to copy a chunk of the columns of a tile; what is not there becomes zero."""
    column = gl.arange(0, CHUNK, gl.SliceLayout(0, COPY))
    mask = valid[:, None]
    if COUNT < CHUNK:
        mask = mask & (column < COUNT)[None, :]
    copy_async(target, row[:, None] + (FIRST + column)[None, :], mask)


@gluon.jit
def _share_query(
    row,
    present,
    COPY: gl.constexpr,
    SHARED: gl.constexpr,
    FIRST: gl.constexpr,
    COUNT: gl.constexpr,
    CHUNK: gl.constexpr,
    QUERIES: gl.constexpr,
):
    """Put the columns of the queries that a chunk meets into shared memory  # [QUERIES, CHUNK]."""
    column = gl.arange(0, CHUNK, gl.SliceLayout(0, COPY))
    mask = present[:, None] & (column < COUNT)[None, :]
    values = gl.load(row[:, None] + (FIRST + column)[None, :], mask=mask, other=0.0)
    return gl.allocate_shared_memory(values.dtype, [QUERIES, CHUNK], SHARED, values)


@gluon.jit
def _store_columns(
    target, acc, exists, FIRST: gl.constexpr, OUT: gl.constexpr, CHUNK: gl.constexpr
):
    """Store a chunk of the transposed output  # acc: [CHUNK, QUERIES]."""
    STORE: gl.constexpr = gl.BlockedLayout([4, 1], [16, 2], [1, 4], [0, 1])
    column = FIRST + gl.arange(0, CHUNK, gl.SliceLayout(1, STORE))
    place = gl.convert_layout(target, gl.SliceLayout(0, STORE))
    mask = gl.convert_layout(exists, gl.SliceLayout(0, STORE))[None, :] & (column < OUT)[:, None]
    values = gl.convert_layout(acc.to(target.dtype.element_ty), STORE)
    gl.store(place[None, :] + column[:, None], values, mask=mask)


@gluon.jit
def _find_request(query_start_loc, requests, heads, program, steps, QUERIES: gl.constexpr):
    """Find a program's request and first pair, as ``attention._find_request`` does."""
    low = program * 0
    high = low + requests - 1
    for _ in range(steps):
        middle = (low + high + 1) // 2
        before = gl.load(query_start_loc + middle).to(gl.int64) * heads // QUERIES + middle
        low = gl.where(before <= program, middle, low)
        high = gl.where(before <= program, high, gl.maximum(middle - 1, low))
    base = gl.load(query_start_loc + low).to(gl.int64) * heads // QUERIES + low
    return low, ((program - base) * QUERIES).to(gl.int32)
