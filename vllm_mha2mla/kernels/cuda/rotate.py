"""Rotary embedding of new tokens, on their way into the cache and into the query buffer.

One kernel reads each new token once. It turns ``k_rope`` and stores ``[c ; k_rope]`` in the token's
row of the paged cache, and it turns every head's ``q_rope`` and stores it beside the place of the
absorbed query. The columns that pad a row or a query are set to zero: kernels that read whole rows
multiply them, and zero times whatever an unwritten row holds could be NaN.
"""

import triton
import triton.language as tl
from torch import Tensor

from vllm_mha2mla.kernels.cuda.rows import next_power_of_2

HEADS_AT_ONCE = 32


def rotate_and_write(
    query: Tensor,
    kv_latent: Tensor,
    positions: Tensor,
    slots: Tensor,
    inv_freq: Tensor,
    q_out: Tensor,
    cache: Tensor,
    nope: int,
    rank: int,
    column: int | None = None,
) -> None:
    """Turn the rotary parts of new tokens, store their rows and their queries' rotary columns.

    The angle of a pair is ``position * theta_j`` in float32, as in ``rope.py``.

    Args:
        query: ``[q_nope ; q_rope]`` of every head, not turned  # [tokens, heads * (nope + rope)]
        kv_latent: ``[c ; k_rope]``, not turned, any float dtype  # [tokens, rank + rope]
        positions: position of each token in its request  # [tokens], int64
        slots: ``block * block_size + offset``; negative for padding, skipped  # [tokens], int64
        inv_freq: ``theta_j`` of each pair, float32  # [rope/2]
        q_out: columns from ``column`` on are filled in place; may be the query itself
            # [tokens, heads, >= column + rope]
        cache: the paged cache, changed in place  # [blocks, block_size, >= rank + rope]
        nope: query columns of a head that are not turned.
        rank: latent columns of a row.
        column: of ``q_out``, where the rotary part begins; ``rank`` if not given.
    """
    column = rank if column is None else column
    tokens, heads, query_width = q_out.shape
    half = inv_freq.shape[0]
    if tokens == 0:
        return
    _rotate_and_write[(tokens, 1 + triton.cdiv(heads, HEADS_AT_ONCE))](
        query,
        kv_latent,
        positions,
        slots,
        inv_freq,
        q_out,
        cache,
        query.stride(0),
        kv_latent.stride(0),
        q_out.stride(0),
        q_out.stride(1),
        cache.stride(0),
        cache.stride(1),
        heads,
        NOPE=nope,
        RANK=rank,
        HALF=half,
        QUERY_COLUMN=column,
        QUERY_WIDTH=query_width,
        ROW_WIDTH=cache.shape[2],
        BLOCK_SIZE=cache.shape[1],
        HEADS=min(HEADS_AT_ONCE, next_power_of_2(heads)),
        HALF_TILE=next_power_of_2(max(1, half)),
        QUERY_PAD_TILE=next_power_of_2(max(1, query_width - column - 2 * half)),
        ROW_PAD_TILE=next_power_of_2(max(1, cache.shape[2] - rank - 2 * half)),
        RANK_TILE=next_power_of_2(rank),
        num_warps=4,
    )


# The tokens of a step begin at any position of these.
@triton.jit(do_not_specialize_on_alignment=["positions", "slots"])
def _rotate_and_write(
    query,
    kv_latent,
    positions,
    slots,
    inv_freq,
    q_out,
    cache,
    query_stride,
    latent_stride,
    out_token_stride,
    out_head_stride,
    block_stride,
    row_stride,
    heads,
    NOPE: tl.constexpr,
    RANK: tl.constexpr,
    HALF: tl.constexpr,
    QUERY_COLUMN: tl.constexpr,
    QUERY_WIDTH: tl.constexpr,
    ROW_WIDTH: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEADS: tl.constexpr,
    HALF_TILE: tl.constexpr,
    QUERY_PAD_TILE: tl.constexpr,
    ROW_PAD_TILE: tl.constexpr,
    RANK_TILE: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    group = tl.program_id(1)
    pair = tl.arange(0, HALF_TILE)
    frequency = tl.load(inv_freq + pair, mask=pair < HALF, other=0.0)
    angle = tl.load(positions + token).to(tl.float32) * frequency
    cos, sin = tl.cos(angle), tl.sin(angle)  # [HALF_TILE]

    if group == 0:
        slot = tl.load(slots + token).to(tl.int64)
        if slot >= 0:
            source = kv_latent + token * latent_stride
            row = cache + (slot // BLOCK_SIZE) * block_stride + (slot % BLOCK_SIZE) * row_stride
            column = tl.arange(0, RANK_TILE)
            c = tl.load(source + column, mask=column < RANK, other=0.0)
            tl.store(row + column, c.to(cache.dtype.element_ty), mask=column < RANK)
            if HALF > 0:
                _turn(source + RANK + pair, row + RANK + pair, cos, sin, pair < HALF, HALF)
            if ROW_WIDTH > RANK + 2 * HALF:
                padding = RANK + 2 * HALF + tl.arange(0, ROW_PAD_TILE)
                zeros = tl.zeros([ROW_PAD_TILE], cache.dtype.element_ty)
                tl.store(row + padding, zeros, mask=padding < ROW_WIDTH)
    else:
        turn_queries(
            query + token * query_stride,
            q_out + token * out_token_stride,
            out_head_stride,
            heads,
            cos,
            sin,
            NOPE,
            HALF,
            QUERY_COLUMN,
            QUERY_WIDTH,
            HEADS,
            HALF_TILE,
            QUERY_PAD_TILE,
        )


@triton.jit
def turn_queries(
    query,  # of this token
    out,
    out_head_stride,
    heads,
    cos,  # [HALF_TILE]
    sin,
    NOPE: tl.constexpr,
    HALF: tl.constexpr,
    COLUMN: tl.constexpr,
    WIDTH: tl.constexpr,
    HEADS: tl.constexpr,
    HALF_TILE: tl.constexpr,
    PAD_TILE: tl.constexpr,
):
    """Turn the rotary parts of a program's heads; columns behind them are set to zero."""
    pair = tl.arange(0, HALF_TILE)
    head = (tl.program_id(1) - 1) * HEADS + tl.arange(0, HEADS)
    exists = (head < heads)[:, None]
    out += head[:, None].to(tl.int64) * out_head_stride + COLUMN
    if HALF > 0:
        source = query + head[:, None] * (NOPE + 2 * HALF) + NOPE
        mask = exists & (pair < HALF)[None, :]
        _turn(source + pair, out + pair, cos[None, :], sin[None, :], mask, HALF)
    if WIDTH > COLUMN + 2 * HALF:
        padding = 2 * HALF + tl.arange(0, PAD_TILE)
        zeros = tl.zeros([HEADS, PAD_TILE], out.dtype.element_ty)
        mask = exists & (padding < WIDTH - COLUMN)[None, :]
        tl.store(out + padding, zeros, mask=mask)


@triton.jit
def _turn(source, target, cos, sin, mask, HALF: tl.constexpr):
    """Turn the pairs ``(x[j], x[j + HALF])`` by their angles, in float32."""
    first = tl.load(source, mask=mask, other=0.0).to(tl.float32)
    second = tl.load(source + HALF, mask=mask, other=0.0).to(tl.float32)
    dtype = target.dtype.element_ty
    tl.store(target, (first * cos - second * sin).to(dtype), mask=mask)
    tl.store(target + HALF, (second * cos + first * sin).to(dtype), mask=mask)
