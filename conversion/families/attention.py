"""The attention of one source layer as the strategies see it, whatever its family."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class AttentionWeights:
    """The source's attention weights of one layer, split by head; float32."""

    query: Tensor  # [heads, d, hidden]
    key: Tensor  # [kv_heads, d, hidden]
    value: Tensor  # [kv_heads, d, hidden]
    output: Tensor  # [heads, hidden, d]
    query_bias: Tensor  # [heads, d]
    key_bias: Tensor  # [kv_heads, d]
    value_bias: Tensor  # [kv_heads, d]
    output_bias: Tensor  # [hidden]
    inv_freq: Tensor  # [d/2]
    scale: float

    @property
    def group(self) -> int:
        """Query heads per KV head."""
        return int(self.query.shape[0] // self.key.shape[0])


@torch.no_grad()
def split_by_head(
    query: Any, key: Any, value: Any, output: Any, config: Any, rotary: Any
) -> AttentionWeights:
    """Split the four projections of an attention block by head.

    Args:
        query: linear layer  # [heads * d, hidden]
        key: linear layer  # [kv_heads * d, hidden]
        value: linear layer  # [kv_heads * d, hidden]
        output: linear layer  # [hidden, heads * d]
        config: the source's config.
        rotary: its rotary embedding, for frequencies and their scaling.
    """
    heads, kv_heads, d = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    scaling = float(rotary.attention_scaling)

    def split(linear: Any, count: int) -> tuple[Tensor, Tensor]:
        weight = linear.weight.float().view(count, d, -1)
        bias = linear.bias
        return weight, weight.new_zeros(count, d) if bias is None else bias.float().view(count, d)

    query_weight, query_bias = split(query, heads)
    key_weight, key_bias = split(key, kv_heads)
    value_weight, value_bias = split(value, kv_heads)
    output_weight, output_bias = output.weight.float(), output.bias
    return AttentionWeights(
        query=query_weight,
        query_bias=query_bias,
        key=key_weight,
        key_bias=key_bias,
        value=value_weight,
        value_bias=value_bias,
        output=output_weight.view(-1, heads, d).transpose(0, 1),
        output_bias=output_weight.new_zeros(len(output_weight))
        if output_bias is None
        else output_bias.float(),
        inv_freq=rotary.inv_freq.float(),
        # YaRN multiplies cosine and sine, of queries and of keys.
        scale=d**-0.5 * scaling**2,
    )
