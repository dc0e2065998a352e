"""A dense formulation of ``flash_attn_varlen_func``, for machines without the library."""

import itertools
from typing import Any

import torch
from torch import Tensor

DTYPES = [torch.bfloat16, torch.float16]
"""The library's; a test that wants exact results may add another."""


def flash_attn_varlen_func(
    *,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    max_seqlen_q: int,
    cu_seqlens_q: Tensor,
    max_seqlen_k: int,
    softmax_scale: float,
    causal: bool,
    fa_version: int,
    cu_seqlens_k: Tensor | None = None,
    seqused_k: Tensor | None = None,
    q_v: Tensor | None = None,
    block_table: Tensor | None = None,
    out: Tensor | None = None,
    num_splits: int = 0,
    scheduler_metadata: Tensor | None = None,
) -> Tensor:
    """Compute vLLM's function, and refuse what its kernels of a version refuse."""
    assert causal
    assert cu_seqlens_q.dtype == torch.int32
    assert max_seqlen_q >= int(cu_seqlens_q.diff().max())
    for tensor in (q, k, v):
        assert tensor.dtype in DTYPES
        assert tensor.dtype == q.dtype
        assert tensor.stride(-1) == 1
        assert all(stride % 8 == 0 for stride in tensor.stride()[:-1])
        assert tensor.storage_offset() % 8 == 0
        assert tensor.shape[-1] % 8 == 0
    check_widths(q.shape[-1], v.shape[-1], q_v, fa_version)
    if out is None:
        out = q.new_empty(*q.shape[:2], v.shape[-1])
    assert out.shape == (*q.shape[:2], v.shape[-1])
    assert q.shape[1] % k.shape[-2] == 0
    for request, (start, end) in enumerate(pairs(cu_seqlens_q)):
        if block_table is not None:
            assert seqused_k is not None
            assert seqused_k.dtype == block_table.dtype == torch.int32
            length = int(seqused_k[request])
            blocks = block_table[request, : -(-length // k.shape[1])].long()
            keys, values = (x[blocks].flatten(0, 1)[:length].float() for x in (k, v))
        else:
            assert cu_seqlens_k is not None
            first, last = pairs(cu_seqlens_k)[request]
            keys, values = k[first:last].float(), v[first:last].float()
        assert len(keys) <= max_seqlen_k
        if start < end:
            extra = None if q_v is None else q_v[start:end].float()
            out[start:end] = one(q[start:end].float(), extra, keys, values, softmax_scale)
    return out


def one(query: Tensor, extra: Tensor | None, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """Causal attention of the newest tokens of one request  # [tokens, heads, v]"""
    size = query.shape[1] // keys.shape[1]
    keys, values = (x.repeat_interleave(size, dim=1) for x in (keys, values))
    scores = torch.einsum("thd,nhd->htn", query, keys)
    if extra is not None:
        scores = scores + torch.einsum("thd,nhd->htn", extra, values)
    positions = torch.arange(len(keys))
    hidden = positions > positions[len(keys) - len(query) :, None]
    weights = (scores * scale).masked_fill(hidden, float("-inf")).softmax(-1)
    return torch.einsum("htn,nhd->thd", weights, values)


def check_widths(key: int, value: int, q_v: Any, version: int) -> None:
    """Widths that the versions take."""
    if q_v is not None:
        assert version == 3
        assert 0 <= key <= 64
        assert 256 <= value <= 512
        assert q_v.shape[-1] == value
        return
    assert max(key, value) <= 256
    if key != value:
        wide = 128 < key <= 192 and 96 < value <= 128
        assert version == 4 or (version == 3 and wide)


def pairs(starts: Tensor) -> list[tuple[int, int]]:
    """First and last of each request."""
    numbers = starts.tolist()
    return list(itertools.pairwise(numbers))
