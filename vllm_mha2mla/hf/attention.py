"""Multi-head latent attention as a transformers module.

For head h, with latent c and shared rotary key k_rope (DeepSeek-V2, arXiv:2405.04434, eqs. 37-47,
and their absorbed form, section 2.1.2):

    score(h, n) = scale * ((W_UK[h]^T q_nope[h]) . c[n] + q_rope[h] . k_rope[n])
    out(h)      = W_UV[h] . sum_n p(h, n) c[n]

so the cache holds ``[c ; k_rope]`` and nothing else. ``W_UK`` and ``W_UV`` are stored once for all
query heads of a KV head of the source (``kv_b_proj_groups``). With ``q_lora_rank``, queries come
from a latent of their own (eqs. 37-38); where the source norms queries and keys, see
``normed_inputs``. Where this deviates from DeepSeek: no norm on the latents, a bias on ``o_proj``
(the centred values' mean), and rotary frequencies stored with the weights, because partial RoPE
keeps a different set in every layer.

Where rows are coded (``vllm_mha2mla.coding``), the projection gives ``[z ; u]``, centred, and the
cache holds what becomes of it, ``[z^ ; u^ + R_n m]``, with ``m`` the mean of the rotary columns.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from vllm_mha2mla.coding.rounding import rounded
from vllm_mha2mla.coding.row_code import RowCode
from vllm_mha2mla.config import (
    FIRST_ROW,
    ROPE_INV_FREQ,
    ROTARY_MEAN,
    LatentWidths,
    up_projection_groups,
)
from vllm_mha2mla.hf.adapters import NotInConverted, refuse_adapters_of_the_original
from vllm_mha2mla.hf.eager import eager_attention
from vllm_mha2mla.hf.effective_weight import effective_weight
from vllm_mha2mla.hf.exact import ExactConstants
from vllm_mha2mla.hf.normed_inputs import add_normed_inputs, normed_inputs
from vllm_mha2mla.rope import apply_rotary, rotary_angles


class LatentAttention(ExactConstants):
    """Drop-in for a family's attention class once a layer is converted.

    Args:
        config: the converted model's config.
        layer_idx: index of the layer, which is also its slot in the cache.
        widths: the layer's cache widths.
        code: of its cache rows; ``None`` stores them as they are.
    """

    def __init__(
        self, config: Any, layer_idx: int, widths: LatentWidths, code: RowCode | None = None
    ) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.num_heads: int = config.num_attention_heads
        self.nope: int = config.qk_nope_head_dim
        self.v: int = config.v_head_dim
        self.rank = widths.kv_lora_rank
        self.rope = widths.qk_rope_head_dim
        self.scaling: float = config.attention_scale
        self.attention_dropout: float = config.attention_dropout or 0.0
        self.is_causal = True
        # One shared cache row per token: every query head reads the same "KV head".
        self.num_key_value_groups = self.num_heads

        hidden = config.hidden_size
        self.code = code
        self.q_rank: int | None = config.q_lora_rank
        norms = config.query_key_norms()
        self.normed = norms is not None
        if norms is not None:
            add_normed_inputs(self, config, widths, norms, bias=code is not None)
        else:
            self._add_inputs(hidden, widths, config.attention_bias)
        self.groups = up_projection_groups(config)
        self.kv_b_proj = nn.Linear(self.rank, self.groups * (self.nope + self.v), bias=False)
        self.o_proj = nn.Linear(self.num_heads * self.v, hidden, bias=True)
        self.add_constant(ROPE_INV_FREQ, self.rope // 2)
        if code is not None:
            self.add_constant(ROTARY_MEAN, self.rope)
            self.add_constant(FIRST_ROW, widths.width)

    def _add_inputs(self, hidden: int, widths: LatentWidths, bias: bool) -> None:
        queries = self.num_heads * (self.nope + self.rope)
        if self.q_rank is None:
            self.q_proj = nn.Linear(hidden, queries, bias=bias)
        else:
            self.q_a_proj = nn.Linear(hidden, self.q_rank, bias=False)
            self.q_b_proj = nn.Linear(self.q_rank, queries, bias=bias)
        bias = bias or self.code is not None
        self.kv_a_proj_with_mqa = nn.Linear(hidden, widths.width, bias=bias)
        self.k_proj, self.v_proj = NotInConverted("k_proj"), NotInConverted("v_proj")

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        refuse_adapters_of_the_original(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def forward(
        self,
        hidden_states: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """The attention block's output.

        Args:
            hidden_states: normed input  # [batch, tokens, hidden]
            position_embeddings: unused; the frequencies are this layer's own.
            attention_mask: as the configured attention implementation expects it.
            past_key_values: cache that is given ``c`` as keys and ``k_rope`` as values.
            kwargs: ``position_ids`` of the tokens  # [batch, tokens], and the rest.
        """
        heads, weights = self.attend(hidden_states, attention_mask, past_key_values, **kwargs)
        return self.o_proj(heads), weights

    def attend(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """Every head's output over the latents cached so far, before ``o_proj``.

        Args and shapes as for :meth:`forward`; the result is  # [batch, tokens, heads * v]
        """
        batch, tokens, _ = hidden_states.shape
        position_ids: Tensor = kwargs["position_ids"]
        q, rows = self.inputs(hidden_states)
        q = q.view(batch, tokens, self.num_heads, self.nope + self.rope)
        q_nope, q_rope = q.split((self.nope, self.rope), dim=-1)  # [batch, tokens, heads, *]
        c, k_rope = rows.split((self.rank, self.rope), dim=-1)

        cos, sin = rotary_angles(position_ids, self.exact(ROPE_INV_FREQ))
        q_rope = apply_rotary(q_rope, cos.unsqueeze(2), sin.unsqueeze(2))
        k_rope = apply_rotary(k_rope, cos, sin)
        if self.code is not None:
            c, k_rope = self._coded(c, k_rope, position_ids, cos, sin)
        c, k_rope = c.unsqueeze(1), k_rope.unsqueeze(1)  # [batch, 1, tokens, rank | rope]
        if past_key_values is not None:
            c, k_rope = past_key_values.update(c, k_rope, self.layer_idx)

        up = effective_weight(self.kv_b_proj, self.rank, hidden_states)
        w_uk, w_uv = up.view(self.groups, self.nope + self.v, -1).split(
            (self.nope, self.v), dim=1
        )  # [groups, nope | v, rank]
        q_nope = q_nope.unflatten(2, (self.groups, -1))
        q_latent = torch.einsum("btghn,gnr->bghtr", q_nope, w_uk).flatten(1, 2)
        query = torch.cat((q_latent, q_rope.transpose(1, 2)), dim=-1)
        # Values are the same rows as keys: equal widths let the fused kernels take the call,
        # and the rotary columns of the result are dropped.
        rows = torch.cat((c, k_rope), dim=-1)  # [batch, 1, context, rank + rope]
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention
        )
        out, weights = attend(
            self,
            query,
            rows,
            rows,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )  # [batch, tokens, heads, rank + rope]
        out = out[..., : self.rank].unflatten(2, (self.groups, -1))
        out = torch.einsum("btghr,gvr->btghv", out, w_uv)
        return out.reshape(batch, tokens, -1), weights

    def _coded(
        self, c: Tensor, k_rope: Tensor, position_ids: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Latent and turned rotary columns as they come out of a coded cache."""
        assert self.code is not None
        rows = torch.cat((c, k_rope), dim=-1)  # [batch, tokens, rank + rope]
        rows = rounded(self.code, rows, self.exact(FIRST_ROW), position_ids == 0)
        c, k_rope = rows.split((self.rank, self.rope), dim=-1)
        mean = apply_rotary(self.exact(ROTARY_MEAN), cos, sin)  # [batch, tokens, rope]
        return c, k_rope + mean.to(k_rope.dtype)

    def inputs(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """Queries of every head and the rows to cache, neither turned nor coded.

        Args:
            hidden_states: normed input  # [batch, tokens, hidden]

        Returns:
            # [batch, tokens, heads * (nope + rope)], [batch, tokens, rank + rope]
        """
        if self.normed:
            return normed_inputs(self, hidden_states)
        if self.q_rank is None:
            query = self.q_proj(hidden_states)
        else:
            query = self.q_b_proj(self.q_a_proj(hidden_states))
        return query, self.kv_a_proj_with_mqa(hidden_states)
