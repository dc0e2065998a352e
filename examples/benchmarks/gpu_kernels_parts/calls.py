"""Calls of every kernel on the same loads, each call with another cache."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from gpu_kernels_parts.loads import DTYPE, Batch, Model
from vllm_mha2mla.kernels.cuda.attention import attend
from vllm_mha2mla.kernels.cuda.tuning import Tiles


def flash_attention() -> Callable[..., Any]:
    """VLLM's FlashAttention, in the version that it picks for this GPU."""
    from vllm.vllm_flash_attn import flash_attn_varlen_func

    version = 3 if torch.cuda.get_device_capability()[0] == 9 else 2
    return functools.partial(flash_attn_varlen_func, causal=True, fa_version=version)


def original_calls(model: Model, batch: Batch) -> list[Callable[[], Any]]:
    """Grouped-query attention of the original's queries over its keys and values."""
    flash = flash_attention()
    row = 2 * model.kv_heads * model.head_dim
    caches = [
        torch.randn(
            batch.blocks, 2, batch.block_size, model.kv_heads, model.head_dim,
            device="cuda", dtype=DTYPE,
        )
        for _ in range(batch.copies(row * DTYPE.itemsize))
    ]  # fmt: skip
    tokens = batch.requests * batch.new
    query = torch.randn(tokens, model.heads, model.head_dim, device="cuda", dtype=DTYPE)
    return [
        functools.partial(
            flash, q=query, k=cache[:, 0], v=cache[:, 1], max_seqlen_q=batch.new,
            cu_seqlens_q=batch.starts, max_seqlen_k=batch.context, seqused_k=batch.lengths,
            softmax_scale=model.head_dim**-0.5, block_table=batch.table,
        )
        for cache in caches
    ]  # fmt: skip


def latent_calls(
    variant: str,
    heads: int,
    rank: int,
    rope: int,
    batch: Batch,
    tiles: Tiles | None = None,
    splits: int | None = None,
) -> list[Callable[[], Any]]:
    """Latent attention by the own kernel, by FlashAttention on whole rows, or with ``q_v``."""
    width, tokens = rank + rope, batch.requests * batch.new
    caches = [
        torch.randn(batch.blocks, batch.block_size, width, device="cuda", dtype=DTYPE)
        for _ in range(batch.copies(width * DTYPE.itemsize))
    ]
    query = torch.randn(tokens, heads, width, device="cuda", dtype=DTYPE)
    scale = width**-0.5
    if variant == "own":
        out = torch.empty(tokens, heads, rank, device="cuda", dtype=DTYPE)
        return [
            functools.partial(
                attend, query, cache, batch.table, batch.starts, batch.lengths, batch.new,
                batch.context, scale, rank, rope, out, None, splits, tiles,
            )
            for cache in caches
        ]  # fmt: skip
    rest = {
        "max_seqlen_q": batch.new, "cu_seqlens_q": batch.starts, "max_seqlen_k": batch.context,
        "seqused_k": batch.lengths, "softmax_scale": scale, "block_table": batch.table,
    }  # fmt: skip
    flash = flash_attention()
    return [
        functools.partial(flash, **flash_tensors(variant, query, cache, rank), **rest)
        for cache in caches
    ]


def flash_tensors(variant: str, query: Tensor, cache: Tensor, rank: int) -> dict[str, Tensor]:
    """The tensors that FlashAttention is given: for each way, the same scores and latents."""
    rows = cache.unsqueeze(2)
    if variant == "FlashAttention K=V":
        return {"q": query, "k": rows, "v": rows}
    if variant == "FlashAttention q_v":
        key = slice(rank, None)
        return {"q": query[..., key], "k": rows[..., key], "v": rows[..., :rank],
                "q_v": query[..., :rank]}  # fmt: skip
    return {"q": query[..., :0], "k": rows[..., :0], "v": rows, "q_v": query}


def variants(rank: int, rope: int) -> Iterator[tuple[str, int]]:
    """Kernels that take a width, and the block size that each is timed with."""
    yield "own", 16
    yield "own", 64
    if rank + rope <= 256:
        yield "FlashAttention K=V", 16
        yield "FlashAttention K=V", 64
    if rope <= 64 and 256 <= rank <= 512:
        yield "FlashAttention q_v", 16
        yield "FlashAttention q_v", 64
    if 256 <= rank + rope <= 512:
        yield "FlashAttention q_v of rows", 16
