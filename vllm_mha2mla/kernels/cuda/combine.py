"""Join the shares of split contexts into one softmax (flash decoding).

With maximum ``m_s``, sum ``l_s`` and unnormalised output ``o_s`` of share ``s``, all relative to
``m_s`` and in powers of two:

    m = max_s m_s,     o = sum_s 2^(m_s - m) o_s / sum_s 2^(m_s - m) l_s
"""

import triton
import triton.language as tl
from torch import Tensor

# Shares and columns that a program joins side by side.
AT_ONCE, COLUMNS = 32, 128


def combine(
    partial: Tensor, state: Tensor, query_start_loc: Tensor, out: Tensor, lse: Tensor | None
) -> None:
    """Join shares; tokens beyond the last request's are left as they are.

    Args:
        partial: outputs of each share  # [splits, tokens, heads, rank], float32
        state: maxima and sums of each share  # [2, splits, tokens, heads], float32
        query_start_loc: its last entry is the number of tokens  # [requests + 1]
        out: filled in place  # [tokens, heads, rank]
        lse: filled in place if given  # [tokens, heads], float32
    """
    splits, tokens, heads, rank = partial.shape
    _combine[(tokens, heads, triton.cdiv(rank, COLUMNS))](
        partial,
        state,
        query_start_loc,
        out,
        out if lse is None else lse,
        query_start_loc.shape[0] - 1,
        heads,
        splits,
        out.stride(0),
        out.stride(1),
        0 if lse is None else lse.stride(0),
        0 if lse is None else lse.stride(1),
        RANK=rank,
        COLUMNS=COLUMNS,
        AT_ONCE=AT_ONCE,
        WITH_LSE=lse is not None,
        num_warps=4,
    )


@triton.jit(do_not_specialize=["requests", "splits"])
def _combine(
    partial,
    state,
    query_start_loc,
    out,
    lse,
    requests,
    heads,
    splits,
    out_token_stride,
    out_head_stride,
    lse_token_stride,
    lse_head_stride,
    RANK: tl.constexpr,
    COLUMNS: tl.constexpr,
    AT_ONCE: tl.constexpr,
    WITH_LSE: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    if token >= tl.load(query_start_loc + requests):
        return
    count = tl.num_programs(0).to(tl.int64) * heads
    first = token * heads + head
    column = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    m = float("-inf")
    total = 0.0
    acc = tl.zeros([COLUMNS], tl.float32)
    for start in range(0, splits, AT_ONCE):
        split = start + tl.arange(0, AT_ONCE)
        exists = split < splits
        at = split * count + first
        maxima = tl.load(state + at, mask=exists, other=float("-inf"))
        sums = tl.load(state + splits * count + at, mask=exists, other=0.0)
        mask = exists[:, None] & (column < RANK)[None, :]
        outputs = tl.load(partial + at[:, None] * RANK + column[None, :], mask=mask, other=0.0)
        # A share that saw no row has written no output, and its memory may hold anything.
        outputs = tl.where((sums > 0)[:, None], outputs, 0.0)
        new_m = tl.maximum(m, tl.max(maxima, 0))
        reference = tl.where(new_m == float("-inf"), 0.0, new_m)
        weights = tl.exp2(maxima - reference)
        rescale = tl.exp2(m - reference)
        total = total * rescale + tl.sum(weights * sums, 0)
        acc = acc * rescale + tl.sum(weights[:, None] * outputs, 0)
        m = new_m
    acc = acc / tl.where(total > 0, total, 1.0)
    target = out + token * out_token_stride + head.to(tl.int64) * out_head_stride + column
    tl.store(target, acc.to(out.dtype.element_ty), mask=column < RANK)
    if WITH_LSE:
        at = lse + token * lse_token_stride + head.to(tl.int64) * lse_head_stride
        value = (m + tl.log2(total)) / 1.4426950408889634
        tl.store(at, value, mask=tl.program_id(2) == 0)
