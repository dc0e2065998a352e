"""The attention of one source layer as the strategies see it, whatever its family."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from conversion.families.qk_norm import normed_maps
from conversion.families.turned_pairs import head_order, inverse_frequencies, turn_factors


@dataclass(frozen=True)
class AttentionWeights:
    """The linear maps of one layer's attention, split by head; float32.

    They act on the hidden states that the attention reads or, where queries and keys are normed, on
    ``[q^ ; k^ ; v]`` (``qk_norm``), queries on its first part and keys and values on the rest: what
    keys and values act on are the ``inputs`` here. RoPE turns the pairs ``(x[f], x[f + d/2])`` of
    every head, some of them by nothing (``turned_pairs``).
    """

    query: Tensor  # [heads, d, query inputs]
    key: Tensor  # [kv_heads, d, inputs]
    value: Tensor  # [kv_heads, d, inputs]
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

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The parts of ``x`` that queries, and keys and values, are maps of.

        [..., hidden] or [..., (heads + 2 * kv_heads) * d] -> [..., query inputs], [..., inputs]
        """
        return x[..., : self.query.shape[2]], x[..., -self.key.shape[2] :]


Map = tuple[Tensor, Tensor | None]
"""Weight and bias of a linear layer  # [out, in], [out]"""


@dataclass(frozen=True)
class Projections:
    """The four projections of an attention, as stored.

    Attributes:
        query: # [heads * d, hidden]
        key: # [kv_heads * d, hidden]
        value: # [kv_heads * d, hidden]
        output: # [hidden, heads * d]
    """

    query: Map
    key: Map
    value: Map
    output: Map

    @property
    def biased(self) -> bool:
        """Tell whether queries, keys or values have a bias."""
        return any(bias is not None for _, bias in (self.query, self.key, self.value))


def separate_projections(attention: Any, config: Any) -> Projections:
    """The projections of an attention with a linear layer for each."""
    layers = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
    return Projections(*((layer.weight, layer.bias) for layer in layers))


ReadsProjections = Callable[[Any, Any], Projections]
"""Reads an attention module's projections, given the source's config too."""


@torch.no_grad()
def attention_weights(
    attention: Any,
    config: Any,
    rotary: Any,
    projections: Projections,
    interleaved: bool,
    qk_norm: bool,
) -> AttentionWeights:
    """Split the projections of an attention by head.

    Args:
        attention: the source's module, which tells how it scales scores.
        config: the source's config.
        rotary: its rotary embedding, for frequencies and their scaling.
        projections: of the attention.
        interleaved: whether RoPE turns neighbours ``(x[2f], x[2f + 1])``.
        qk_norm: whether it norms queries and keys.
    """
    heads, kv_heads, d = config.num_attention_heads, config.num_key_value_heads, config.head_dim

    def split(projection: Map, count: int) -> tuple[Tensor, Tensor]:
        weight, bias = projection
        weight = weight.float().view(count, d, -1)
        return weight, weight.new_zeros(count, d) if bias is None else bias.float().view(count, d)

    if qk_norm:
        query, key, value = normed_maps(heads, kv_heads, d, projections.query[0].device)
        zero = query.new_zeros(heads, d)
        maps = [(query, zero), (key, zero[:kv_heads]), (value, zero[:kv_heads])]
    else:
        maps = [
            split(projections.query, heads),
            split(projections.key, kv_heads),
            split(projections.value, kv_heads),
        ]
    order = head_order(rotary, d, interleaved)
    factors = turn_factors(attention, rotary, d)
    (query, query_bias), (key, key_bias), (value, value_bias) = maps
    factors = factors.to(query.device)
    output, output_bias = projections.output
    output = output.float()
    return AttentionWeights(
        query=query[:, order] * factors[:, None],
        query_bias=query_bias[:, order] * factors,
        key=key[:, order] * factors[:, None],
        key_bias=key_bias[:, order] * factors,
        value=value,
        value_bias=value_bias,
        output=output.view(-1, heads, d).transpose(0, 1),
        output_bias=output.new_zeros(len(output)) if output_bias is None else output_bias.float(),
        inv_freq=inverse_frequencies(attention, rotary, d),
        scale=float(attention.scaling),
    )
