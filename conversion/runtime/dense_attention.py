"""Causal attention over whole windows, by whichever products are faster.

PyTorch's fused CPU attention is the faster one, but for its backward pass in bfloat16: of a
training step on 512 tokens that takes half, and with plain matrix products a sixth. On a GPU the
fused ones are always faster, but for keys that heads share, or of an odd width, PyTorch would take
plain products in float32, which keep all scores.
"""

import math
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

NAME = "mha2mla_dense"
# Scores that exist at once, so that memory does not grow with heads times tokens squared.
SCORES = 1 << 20
# Queries that see the same range of keys: what is masked is less than this of every query's row.
QUERIES = 128
# The fused kernels of GPUs load whole vectors of so many numbers.
ALIGNMENT = 8


def dense_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """``softmax(scaling * q k^T) v`` over whole causal windows; an attention of transformers.

    On a CPU dense where products are rounded to bfloat16 (``precision``) and gradients are wanted,
    fused elsewhere. Heads that share keys are rows of one product, as many as ``SCORES`` allows.

    Args:
        module: unused; part of the interface.
        query: after rotation  # [batch, heads, tokens, d]
        key: after rotation  # [batch, kv_heads, tokens, d]
        value: as wide as wanted  # [batch, kv_heads, tokens, v]
        attention_mask: unused; windows are dense and causal.
        scaling: of the scores; ``d^-0.5`` if ``None``.
        kwargs: of a layer that slides over a window, ``sliding_window``: tokens that a query sees,
            itself included; the others are unused.

    Returns:
        the heads' outputs  # [batch, tokens, heads, v]; no weights
    """
    batch, heads, tokens, d = query.shape
    kv_heads = key.shape[1]
    scale = 1 / math.sqrt(d) if scaling is None else scaling
    window = kwargs.get("sliding_window")
    if window is not None and window < tokens:
        return _sliding(query, key, value, scale, window), None
    if query.device.type != "cpu":
        return _fused_on_gpu(query, key, value, scale), None
    rounded = torch.is_autocast_enabled(query.device.type)
    learns = torch.is_grad_enabled() and any(x.requires_grad for x in (query, key, value))
    # The fused kernel takes keys and values of one width; of two, it falls back to slow products.
    if not rounded or (not learns and key.shape[-1] == value.shape[-1]):
        dtype = torch.get_autocast_dtype(query.device.type) if rounded else query.dtype
        fused = torch.nn.functional.scaled_dot_product_attention(
            query.to(dtype),
            key.to(dtype),
            value.to(dtype),
            is_causal=True,
            scale=scale,
            enable_gqa=kv_heads < heads,
        )
        return fused.transpose(1, 2), None
    grouped = (query * scale).view(batch, kv_heads, heads // kv_heads, tokens, d)
    blocks = [
        _block(grouped[..., start : start + QUERIES, :], key, value, start)
        for start in range(0, tokens, QUERIES)
    ]
    out = torch.cat(blocks, dim=2)  # [batch, heads, tokens, v]
    return out.transpose(1, 2), None


def _sliding(query: Tensor, key: Tensor, value: Tensor, scale: float, window: int) -> Tensor:
    """The heads' outputs over the last ``window`` tokens; others as of ``dense_attention``."""
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    every = torch.ones(query.shape[2], query.shape[2], dtype=torch.bool, device=query.device)
    out = torch.nn.functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=every.tril().triu(1 - window),
        scale=scale,
        enable_gqa=key.shape[1] < query.shape[1],
    )
    return out.transpose(1, 2)


def _fused_on_gpu(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """The heads' outputs by a fused kernel; arguments and result as of ``dense_attention``."""
    group, width = query.shape[1] // key.shape[1], value.shape[-1]
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    query, key, value = (_aligned(x) for x in (query, key, value))

    def of_query_heads(x: Tensor) -> Tensor:
        shared = x[:, :, None].expand(-1, -1, group, -1, -1)
        return shared.reshape(x.shape[0], -1, *x.shape[2:])  # [batch, heads, tokens, width]

    out = torch.nn.functional.scaled_dot_product_attention(
        query, of_query_heads(key), of_query_heads(value), is_causal=True, scale=scale
    )
    return out[..., :width].transpose(1, 2)


def _aligned(x: Tensor) -> Tensor:
    """Zeros behind the last numbers, which change no score  # [..., d] -> [..., aligned d]"""
    return torch.nn.functional.pad(x, (0, -x.shape[-1] % ALIGNMENT))


def _block(query: Tensor, key: Tensor, value: Tensor, start: int) -> Tensor:
    """Outputs of consecutive queries.

    Args:
        query: scaled  # [batch, kv_heads, group, queries, d]
        key: of the whole window  # [batch, kv_heads, tokens, d]
        value: of the whole window  # [batch, kv_heads, tokens, v]
        start: position of the first query.

    Returns:
        # [batch, heads, queries, v]
    """
    batch, kv_heads, _, queries, _ = query.shape
    seen = start + queries
    key, value = key[:, :, :seen], value[:, :, :seen]
    # Of the scores' dtype: sums of two dtypes take several times as long.
    dtype = torch.get_autocast_dtype(query.device.type)
    future = query.new_full((queries, queries), float("-inf"), dtype=dtype).triu_(1)
    future = torch.nn.functional.pad(future, (start, 0))  # [queries, seen]
    at_once = max(1, SCORES // (batch * kv_heads * queries * seen))
    outputs = []
    for some in query.split(at_once, dim=2):
        group = some.shape[2]
        rows = some.reshape(batch, kv_heads, group * queries, -1)
        scores = (rows @ key.transpose(2, 3)).view(batch, kv_heads, group, queries, seen)
        probabilities = (scores + future).softmax(-1).to(value.dtype)
        out = probabilities.view(batch, kv_heads, group * queries, seen) @ value
        outputs.append(out.view(batch, kv_heads, group, queries, -1))
    return torch.cat(outputs, dim=2).flatten(1, 2)


AttentionInterface.register(NAME, dense_attention)
