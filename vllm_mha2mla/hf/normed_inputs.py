"""Queries and cache rows where the source norms its queries and keys (QK-norm).

The norm's scale differs from token to token, so it is no part of a linear map of the hidden state.
But queries and rows are computed once per token: first the source's own, then linear maps of those,
for head h of the queries and all KV heads together,

    q^ = norm(W_Q x),   k^ = norm(W_K x),   v = W_V x
    query[h] = M[h] q^[h],   row = P [k^ ; v]

with ``M`` in ``q_head_proj`` and ``P`` in ``kv_a_proj_with_mqa``. The cache holds the same as
without norms. A norm is of each head by itself (Qwen3), or of all at once (OLMo-2).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vllm_mha2mla.config import LatentWidths, source_head_dim
from vllm_mha2mla.errors import CheckpointError
from vllm_mha2mla.hf.effective_weight import effective_weight

Norms = tuple[nn.Module, nn.Module]
"""Of queries and of keys."""
MakesNorms = Callable[[Any], Norms | None]
"""Makes them from a converted config; ``None`` where it has none."""


def per_head(norm: Callable[[int, float], nn.Module]) -> MakesNorms:
    """Norms of each head by itself; ``norm`` makes one of a width and an epsilon."""

    def make(config: Any) -> Norms:
        d, eps = source_head_dim(config), config.rms_norm_eps
        return norm(d, eps), norm(d, eps)

    return make


def over_heads(norm: Callable[[int, float], nn.Module]) -> MakesNorms:
    """Norms of all heads at once; ``norm`` makes one of a width and an epsilon."""

    def make(config: Any) -> Norms:
        d, eps = source_head_dim(config), config.rms_norm_eps
        return (
            norm(config.num_attention_heads * d, eps),
            norm(config.num_key_value_heads * d, eps),
        )

    return make


def add_normed_inputs(
    attention: Any,
    config: Any,
    widths: LatentWidths,
    norms: Norms,
    bias: bool,
) -> None:
    """Give a latent attention the modules that its inputs come from.

    Args:
        attention: gets them under the names above, and ``q_norm`` and ``k_norm``.
        config: the converted model's config.
        widths: the layer's cache widths.
        norms: of queries and keys.
        bias: of the rows.

    Raises:
        CheckpointError: queries are compressed.
    """
    if config.q_lora_rank is not None:
        raise CheckpointError(
            "config.json: q_lora_rank with normed queries; convert the model again without it"
        )
    d, hidden = source_head_dim(config), config.hidden_size
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    attention.q_proj = nn.Linear(hidden, heads * d, bias=config.attention_bias)
    attention.k_proj = nn.Linear(hidden, kv_heads * d, bias=config.attention_bias)
    attention.v_proj = nn.Linear(hidden, kv_heads * d, bias=config.attention_bias)
    attention.q_norm, attention.k_norm = norms
    queries = heads * (config.qk_nope_head_dim + widths.qk_rope_head_dim)
    attention.q_head_proj = nn.Linear(d, queries, bias=False)
    attention.kv_a_proj_with_mqa = nn.Linear(2 * kv_heads * d, widths.width, bias=bias)


def normed_inputs(attention: Any, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
    """Queries of every head and the rows to cache, neither turned.

    Args:
        attention: of :func:`add_normed_inputs`.
        hidden_states: normed input of the layer  # [..., hidden]

    Returns:
        # [..., heads * (nope + rope)], [..., rank + rope]
    """
    d = source_head_dim(attention.config)
    # [heads * (nope + rope), d]
    maps = effective_weight(attention.q_head_proj, d, hidden_states)
    queries = by_head(attention.q_norm, attention.q_proj(hidden_states), d)
    keys = by_head(attention.k_norm, attention.k_proj(hidden_states), d)
    keys_values = torch.cat((keys.flatten(-2), attention.v_proj(hidden_states)), dim=-1)
    maps = maps.unflatten(0, (queries.shape[-2], -1))  # [heads, nope + rope, d]
    query = torch.einsum("...hd,hnd->...hn", queries, maps).flatten(-2)
    return query, attention.kv_a_proj_with_mqa(keys_values)


def by_head(norm: Any, x: Tensor, d: int) -> Tensor:
    """Norm queries or keys and split them by head.

    Args:
        norm: of each head, or of all of them at once, which its weight tells.
        x: # [..., heads * d]
        d: width of a head.

    Returns:
        # [..., heads, d]
    """
    normed: Tensor
    if norm.weight.shape[-1] == d:
        normed = norm(x.unflatten(-1, (-1, d)))
    else:
        normed = norm(x).unflatten(-1, (-1, d))
    return normed
