"""Products of every query head's vectors with the matrix that its group of heads shares.

The two products of absorbed attention (DeepSeek-V2, arXiv:2405.04434, section 2.1.2) are of this
kind, with ``g(h) = h * groups // heads``:

    q_latent[t, h] = q_nope[t, h] W_UK[g(h)]        out[t, h] = o[t, h] W_UV[g(h)]^T

A batched product of PyTorch needs one matrix a head instead: it would read a group's weights once
for each of its heads, or take one launch for each.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


def grouped_product(x: Tensor, weights: Tensor, out: Tensor) -> None:
    """Compute ``out[t, h] = x[t, h] @ weights[h * groups // heads]``, summed in float32.

    Args:
        x: contiguous in its last dimension  # [tokens, heads, inputs]
        weights: any strides  # [groups, inputs, outputs]
        out: contiguous in its last dimension, filled in place  # [tokens, heads, outputs]
    """
    tokens, heads, inputs = x.shape
    groups, _, outputs = weights.shape
    if tokens == 0:
        return
    rows = tokens * (heads // groups)
    block_m, block_n, warps = _tile(rows, x.dtype)
    grid = (triton.cdiv(rows, block_m), groups, triton.cdiv(outputs, block_n))
    _grouped_product[grid](
        x,
        weights,
        out,
        rows,
        heads // groups,
        inputs,
        outputs,
        x.stride(0),
        x.stride(1),
        *weights.stride(),
        out.stride(0),
        out.stride(1),
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        BLOCK_K=64,
        # float32 rounded to TF32 would be worse than what the CPU computes.
        PRECISION="ieee",
        num_warps=warps,
        num_stages=3,
    )


def _tile(rows: int, dtype: torch.dtype) -> tuple[int, int, int]:
    """Rows and columns of a program's tile, and its warps: small where there are few rows.

    Few rows are a decode step: then the weights' loads are the work, and many programs share them.
    """
    if dtype == torch.float32:
        return 16, 32, 4
    if rows <= 16:
        return 16, 32, 4
    if rows <= 256:
        return 64, 32, 4
    if rows <= 1024:
        return 64, 64, 4
    return 128, 128, 8


@triton.jit(do_not_specialize=["rows"])
def _grouped_product(
    x,
    weights,
    out,
    rows,
    group_size,
    inputs,
    outputs,
    x_token,
    x_head,
    w_group,
    w_input,
    w_output,
    out_token,
    out_head,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    group = tl.program_id(1)
    row = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    token = (row // group_size).to(tl.int64)
    head = group * group_size + row % group_size
    column = tl.program_id(2) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_ok, column_ok = row < rows, column < outputs
    x_rows = x + token * x_token + head * x_head  # [BLOCK_M]
    w_columns = weights + group.to(tl.int64) * w_group + column * w_output  # [BLOCK_N]
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for start in range(0, inputs, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        k_ok = k < inputs
        a = tl.load(x_rows[:, None] + k[None, :], row_ok[:, None] & k_ok[None, :], other=0.0)
        b = tl.load(
            w_columns[None, :] + k[:, None] * w_input,
            k_ok[:, None] & column_ok[None, :],
            other=0.0,
        )
        total = tl.dot(a, b, total, input_precision=PRECISION)
    places = out + (token * out_token + head * out_head)[:, None] + column[None, :]
    tl.store(places, total.to(out.dtype.element_ty), row_ok[:, None] & column_ok[None, :])
