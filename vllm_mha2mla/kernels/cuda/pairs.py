"""The queries of one program of an attention kernel: (token, head) pairs of one request, flattened.

Parts that the kernels for plain and for coded rows share.
"""

import triton
import triton.language as tl


@triton.jit
def find_program(
    program,
    query_start_loc,
    requests,
    heads,
    tiles_per_request,
    search_steps,  # 0 where every request has tiles_per_request
    QUERIES: tl.constexpr,
):
    """Find the request of a program, and its first (token, head) pair."""
    if search_steps > 0:
        request, first = _search(query_start_loc, requests, heads, program, search_steps, QUERIES)
    else:
        request = program // tiles_per_request
        first = (program % tiles_per_request) * QUERIES
    return request, first


@triton.jit
def _search(query_start_loc, requests, heads, program, steps, QUERIES: tl.constexpr):
    """Find them by binary search.

    The programs of request ``r`` begin at ``query_start_loc[r] * heads // QUERIES + r``: that
    leaves room for each request's last, partly filled tile, and needs no sum over the batch.
    """
    low = program * 0
    high = low + requests - 1
    for _ in range(steps):
        middle = (low + high + 1) // 2
        before = tl.load(query_start_loc + middle).to(tl.int64) * heads // QUERIES + middle
        low = tl.where(before <= program, middle, low)
        high = tl.where(before <= program, high, tl.maximum(middle - 1, low))
    base = tl.load(query_start_loc + low).to(tl.int64) * heads // QUERIES + low
    return low, ((program - base) * QUERIES).to(tl.int32)


@triton.jit
def find_pairs(start, new, length, first, heads, QUERIES: tl.constexpr):
    """Describe the pairs of a request from the ``first`` on.

    Returns:
        row of the query tensor, head, whether there is such a pair, and the rows of the context
        that it sees  # [QUERIES] each
        the rows of the context that any of them sees
    """
    pair = first + tl.arange(0, QUERIES)
    exists = pair < new * heads
    token, head = pair // heads, pair % heads
    visible = length - new + token + 1
    last_token = tl.minimum(first + QUERIES, new * heads) - 1
    end = length - new + last_token // heads + 1
    row = (start + token).to(tl.int64)
    return row, head, exists, visible, end


@triton.jit
def load_query(row, exists, first, count, CHUNK: tl.constexpr):
    """Load the columns of the queries that a chunk of the rows meets  # [QUERIES, CHUNK]."""
    column = tl.arange(0, CHUNK)
    mask = exists[:, None] & (column < count)[None, :]
    return tl.load(row[:, None] + (first + column)[None, :], mask=mask, other=0.0)


@triton.jit
def softmax_step(s, maximum, total):
    """Take a tile's scores into the running softmax of powers of two (FlashAttention-2).

    Args:
        s: scores, minus infinity where a query does not see a row  # [TILE, QUERIES]
        maximum: of the scores so far  # [QUERIES]
        total: of ``2^(score - maximum)`` so far  # [QUERIES]

    Returns:
        weights of the tile relative to the new maximum  # [TILE, QUERIES]
        factor of what was summed before, the new maximum and total  # [QUERIES]
    """
    new_maximum = tl.maximum(maximum, tl.max(s, 0))
    # Of a query that has seen no row yet the maximum is minus infinity, and no reference.
    reference = tl.where(new_maximum == float("-inf"), 0.0, new_maximum)
    p = tl.exp2(s - reference[None, :])
    rescale = tl.exp2(maximum - reference)
    return p, rescale, new_maximum, total * rescale + tl.sum(p, 0)


@triton.jit
def store_columns(target, acc, exists, first, end, CHUNK: tl.constexpr):
    """Store a chunk of the transposed output  # acc: [CHUNK, QUERIES]."""
    column = first + tl.arange(0, CHUNK)
    mask = exists[None, :] & (column < end)[:, None]
    tl.store(target[None, :] + column[:, None], acc.to(target.dtype.element_ty), mask=mask)
