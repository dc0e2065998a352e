"""vLLM's FlashAttention, called for latent attention and for expanded keys and values.

Version 2 serves Ampere and Ada, 3 Hopper, 4 where vLLM picks it.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vllm_mha2mla.kernels.cuda.batch import CudaBatch
from vllm_mha2mla.kernels.cuda.choose import FLASH_WIDTH, Offers

# Widths that version 3 takes for keys and values of different width.
WIDE_KEYS, NARROW_VALUES = range(129, 193), range(97, 129)


@functools.cache
def varlen_attention() -> Callable[..., Any]:
    """``flash_attn_varlen_func`` of this platform."""
    from vllm.v1.attention.backends.fa_utils import flash_attn_varlen_func

    function: Callable[..., Any] = flash_attn_varlen_func
    return function


@functools.cache
def scheduler() -> Callable[..., Any]:
    """``get_scheduler_metadata`` of this platform, for version 3."""
    from vllm.v1.attention.backends.fa_utils import get_scheduler_metadata

    function: Callable[..., Any] = get_scheduler_metadata
    return function


def version_of(key: int, value: int) -> int | None:
    """The version vLLM chooses for heads of these widths; ``None`` where it has none."""
    from vllm.v1.attention.backends.fa_utils import get_flash_attn_version

    version: int | None = get_flash_attn_version(head_size=key, head_size_v=value)
    return version


def offers(row: int, dtype: torch.dtype) -> Offers:
    """FlashAttention's part in the choice of a layer's attention."""
    from vllm.v1.attention.backends.fa_utils import flash_attn_supports_mla

    if dtype == torch.float32:
        return Offers(None, split=False)
    version = version_of(row, row) if row <= FLASH_WIDTH else None
    return Offers(version, split=bool(flash_attn_supports_mla()))


def expanded_version(key: int, value: int, dtype: torch.dtype) -> int | None:
    """The version for expanded keys and values of these widths; ``None`` where none takes them."""
    whole = key % 8 == 0 and value % 8 == 0
    if dtype == torch.float32 or not whole or not value <= key <= FLASH_WIDTH:
        return None
    return version_of(key, value)


def value_width(key: int, value: int, version: int) -> int:
    """The width that expanded values are padded to: version 2 wants the keys'."""
    if version == 4 or (version == 3 and key in WIDE_KEYS and value in NARROW_VALUES):
        return value
    return key


def attend_rows(
    query: Tensor, cache: Tensor, batch: CudaBatch, scale: float, version: int
) -> Tensor:
    """Attend with keys = values = the cached rows.

    Args:
        query: ``[q_latent ; q_rope ; zeros]``  # [tokens, heads, row]
        cache: the paged cache  # [blocks, block_size, row]
        batch: the requests.
        scale: factor of the scores.
        version: of FlashAttention.

    Returns:
        weighted rows, whose first columns are the latents  # [tokens, heads, row]
    """
    rows = cache.unsqueeze(2)  # [blocks, block_size, 1, row]
    return _paged(batch, version, q=query, k=rows, v=rows, softmax_scale=scale)


def attend_split(query: Tensor, cache: Tensor, batch: CudaBatch, scale: float, rank: int) -> Tensor:
    """Attend with the rotary columns as keys, the latent ones as values (FlashAttention 3).

    Args:
        query: ``[q_latent ; q_rope]``  # [tokens, heads, rank + rope]
        cache: the paged cache  # [blocks, block_size, rank + rope]
        batch: the requests.
        scale: factor of the scores.
        rank: width of the latent.

    Returns:
        weighted latents  # [tokens, heads, rank]
    """
    rows = cache.unsqueeze(2)  # [blocks, block_size, 1, rank + rope]
    return _paged(
        batch,
        3,
        q=query[..., rank:],
        k=rows[..., rank:],
        v=rows[..., :rank],
        q_v=query[..., :rank],
        softmax_scale=scale,
    )


def attend_whole(query: Tensor, cache: Tensor, batch: CudaBatch, scale: float) -> Tensor:
    """Attend with whole rows as values that are scored too, and no keys (FlashAttention 3).

    Args:
        query: ``[q_latent ; q_rope ; zeros]``  # [tokens, heads, row]
        cache: the paged cache  # [blocks, block_size, row]
        batch: the requests.
        scale: factor of the scores.

    Returns:
        weighted rows, whose first columns are the latents  # [tokens, heads, row]
    """
    rows = cache.unsqueeze(2)  # [blocks, block_size, 1, row]
    nothing = {"q": query[..., :0], "k": rows[..., :0]}
    return _paged(batch, 3, **nothing, v=rows, q_v=query, softmax_scale=scale)


def _paged(batch: CudaBatch, version: int, **tensors: Any) -> Tensor:
    three = version == 3
    out: Tensor = varlen_attention()(
        **tensors,
        # A captured batch may say 0, which is no grid for the kernel.
        max_seqlen_q=max(batch.max_query_len, 1),
        cu_seqlens_q=batch.query_start_loc,
        max_seqlen_k=batch.max_seq_len,
        seqused_k=batch.seq_lens,
        block_table=batch.block_table,
        causal=True,
        num_splits=batch.num_splits if three else 0,
        scheduler_metadata=_schedule(batch, tensors) if three and batch.decoding else None,
        fa_version=version,
    )
    return out


def _schedule(batch: CudaBatch, tensors: dict[str, Any]) -> Tensor:
    """Shares of the requests' contexts, made once for all layers of a width.

    In a captured graph the first layer makes them again in every replay.
    """
    query, rows, values = tensors["q"], tensors["k"], tensors["v"]
    shape = (query.shape[1], query.shape[-1], values.shape[-1])

    def make() -> Tensor:
        made: Tensor = scheduler()(
            batch_size=len(batch.seq_lens),
            max_seqlen_q=max(batch.max_query_len, 1),
            max_seqlen_k=batch.max_seq_len,
            num_heads_q=shape[0],
            num_heads_kv=1,
            headdim=shape[1],
            headdim_v=shape[2],
            cache_seqlens=batch.seq_lens,
            qkv_dtype=query.dtype,
            cu_seqlens_q=batch.query_start_loc,
            page_size=rows.shape[1],
            causal=True,
            num_splits=batch.num_splits,
        )
        return made

    # Of a step that was computed before, a graph would keep what that step was told.
    capturing = query.is_cuda and torch.cuda.is_current_stream_capturing()
    return batch.once((shape, capturing), make)


def attend_expanded(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    starts: tuple[Tensor, Tensor],
    longest: tuple[int, int],
    scale: float,
    version: int,
    out: Tensor,
) -> None:
    """Causal attention of each request's new tokens over its expanded context.

    Args:
        query: ``[q_nope ; q_rope]``  # [new tokens, heads, key]
        key: ``[k_nope ; k_rope]`` of whole contexts  # [tokens, groups, key]
        value: padded to the width that ``value_width`` says  # [tokens, groups, value]
        starts: first new token of each request and the end; the same of contexts  # [requests + 1]
        longest: the most new tokens, and the longest context.
        scale: factor of the scores.
        version: of FlashAttention.
        out: filled in place  # [new tokens, heads, v]
    """
    whole = value.shape[-1] == out.shape[-1]
    made: Tensor = varlen_attention()(
        q=query,
        k=key,
        v=value,
        out=out if whole else None,
        max_seqlen_q=longest[0],
        cu_seqlens_q=starts[0],
        max_seqlen_k=longest[1],
        cu_seqlens_k=starts[1],
        softmax_scale=scale,
        causal=True,
        fa_version=version,
    )
    if not whole:
        out.copy_(made[..., : out.shape[-1]])
