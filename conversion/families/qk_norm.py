"""Attention that norms queries and keys before RoPE.

A norm's scale differs from token to token and from head to head, so it is no part of a linear map
of the hidden states. But the latent of a token is computed once, when it is written, from what the
original would cache. So the input of the linear maps here is

    x = [q^ ; k^ ; v]        q^ = norm_q(W_Q h)    k^ = norm_k(W_K h)    v = W_V h + b_V

with the queries and keys of all heads, normed and not turned; and the maps in ``AttentionWeights``
are those that take each head's part of it.
"""

from typing import Any

import torch
from torch import Tensor

from vllm_mha2mla.hf.normed_inputs import by_head


def normed_maps(
    heads: int, kv_heads: int, d: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """The maps that take every head's query, key and value out of ``x``.

    Returns:
        # [heads, d, inputs], [kv_heads, d, inputs], [kv_heads, d, inputs]
    """
    inputs = (heads + 2 * kv_heads) * d
    identity = torch.eye(inputs, device=device).view(-1, d, inputs)
    query, key, value = identity.split((heads, kv_heads, kv_heads))
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


def with_normed_inputs(tensors: dict[str, Tensor], heads: int, kv_heads: int) -> dict[str, Tensor]:
    """Converted tensors that act on ``x``, as a checkpoint stores them.

    A head's queries depend on its own part of ``x``, and cache rows on keys and values alone: the
    rest of the maps is zero, up to rounding.

    Args:
        tensors: the ``self_attn`` tensors  # q_proj.weight [heads * (nope + rope), inputs],
            kv_a_proj_with_mqa.weight [rank + rope, inputs]
        heads: query heads.
        kv_heads: KV heads.

    Returns:
        the same with ``q_head_proj.weight  # [heads * (nope + rope), d]`` in place of
        ``q_proj.weight``, and ``kv_a_proj_with_mqa.weight  # [rank + rope, 2 * kv_heads * d]``.
    """
    query, down = tensors["q_proj.weight"], tensors["kv_a_proj_with_mqa.weight"]
    d = query.shape[1] // (heads + 2 * kv_heads)
    blocks = query.view(heads, -1, heads + 2 * kv_heads, d)  # [heads, nope + rope, parts, d]
    own = torch.stack([blocks[h, :, h] for h in range(heads)])  # [heads, nope + rope, d]
    kept = {name: x for name, x in tensors.items() if name != "q_proj.weight"}
    return kept | {
        "q_head_proj.weight": own.flatten(0, 1).contiguous(),
        "kv_a_proj_with_mqa.weight": down[:, heads * d :].contiguous(),
    }


SOURCES = ("q_proj.", "k_proj.", "v_proj.", "q_norm.", "k_norm.")
"""The beginnings of the names, in an attention, of tensors that such a layer keeps."""
