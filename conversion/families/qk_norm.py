"""Attention that norms queries and keys before RoPE.

A norm's scale differs from token to token and from head to head, so it is no part of a linear map
of the hidden states. But the latent of a token is computed once, when it is written, from what the
original would cache. So the input of the linear maps here is

    x = [q^ ; k^ ; v]        q^ = norm_q(W_Q h)    k^ = norm_k(W_K h)    v = W_V h + b_V

with the queries and keys of all heads, normed and not turned; and the maps in ``AttentionWeights``
are those that take each head's part of it, of ``q^`` for queries and of ``[k^ ; v]`` for the rest.
"""

from typing import Any

import torch
from torch import Tensor

from vllm_mha2mla.hf.normed_inputs import by_head


def normed_maps(
    heads: int, kv_heads: int, d: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """The maps that take every head's query out of ``q^``, and its key and value out of the rest.

    Returns:
        # [heads, d, heads * d], [kv_heads, d, 2 * kv_heads * d], [kv_heads, d, 2 * kv_heads * d]
    """
    query = torch.eye(heads * d, device=device).view(heads, d, -1)
    key, value = torch.eye(2 * kv_heads * d, device=device).view(2, kv_heads, d, -1)
    return query, key, value


def normed_inputs(attention: Any, hidden: Tensor) -> Tensor:
    """``[q^ ; k^ ; v]`` of some tokens.

    Args:
        attention: the source's module.
        hidden: the hidden states that it reads  # [..., hidden]

    Returns:
        # [..., (heads + 2 * kv_heads) * d]
    """
    d = attention.head_dim
    query = by_head(attention.q_norm, attention.q_proj(hidden), d)
    key = by_head(attention.k_norm, attention.k_proj(hidden), d)
    return torch.cat((query.flatten(-2), key.flatten(-2), attention.v_proj(hidden)), dim=-1)


def with_normed_inputs(tensors: dict[str, Tensor], heads: int) -> dict[str, Tensor]:
    """Converted tensors that act on ``x``, as a checkpoint stores them.

    A head's queries depend on its own part of ``q^``: the rest of the map is zero, up to rounding.

    Args:
        tensors: the ``self_attn`` tensors  # q_proj.weight [heads * (nope + rope), heads * d]
        heads: query heads.

    Returns:
        the same with ``q_head_proj.weight  # [heads * (nope + rope), d]`` in place of
        ``q_proj.weight``.
    """
    query = tensors["q_proj.weight"]
    d = query.shape[1] // heads
    blocks = query.view(heads, -1, heads, d)  # [heads, nope + rope, parts, d]
    own = torch.stack([blocks[h, :, h] for h in range(heads)])  # [heads, nope + rope, d]
    kept = {name: x for name, x in tensors.items() if name != "q_proj.weight"}
    return kept | {"q_head_proj.weight": own.flatten(0, 1).contiguous()}


SOURCES = ("q_proj.", "k_proj.", "v_proj.", "q_norm.", "k_norm.")
"""The beginnings of the names, in an attention, of tensors that such a layer keeps."""
