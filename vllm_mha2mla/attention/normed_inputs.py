"""Queries and cache rows of normed queries and keys, for the query heads of this rank.

The formulas are in ``vllm_mha2mla.hf.normed_inputs``. Every rank computes the keys and values of
all KV heads, because it caches the whole row. A norm that all query heads share wants all of them
too, and then each rank keeps its own.
"""

from typing import Any

import torch
from torch import Tensor, nn
from vllm.distributed import get_tensor_model_parallel_rank, get_tensor_model_parallel_world_size
from vllm.model_executor.layers.linear import ColumnParallelLinear, ReplicatedLinear
from vllm.model_executor.layers.quantization import QuantizationConfig
from vllm.model_executor.model_loader.weight_utils import default_weight_loader
from vllm.model_executor.utils import set_weight_attrs

from vllm_mha2mla.attention.joined import JoinedProducts
from vllm_mha2mla.config import LatentWidths, source_head_dim
from vllm_mha2mla.hf.normed_inputs import by_head


class HeadProjection(nn.Module):
    """The map of each head's normed query, for the query heads of this rank.

    Args:
        num_heads: query heads of the model.
        width: of a head's result.
        d: width of a head of the source.
    """

    def __init__(self, num_heads: int, width: int, d: int) -> None:
        super().__init__()
        heads = num_heads // get_tensor_model_parallel_world_size()
        first = get_tensor_model_parallel_rank() * heads
        self.here, self.width, self.d = slice(first, first + heads), width, d
        self.weight = nn.Parameter(torch.empty(heads * width, d), requires_grad=False)

        # vLLM's reloading of weights puts another tensor in the place of ``param``, by this name.
        def load(param: Tensor, loaded_weight: Tensor) -> None:
            by_head = loaded_weight.view(num_heads, width, d)
            default_weight_loader(param, by_head[self.here].flatten(0, 1))

        set_weight_attrs(self.weight, {"weight_loader": load})

    def forward(self, queries: Tensor) -> Tensor:
        """Map queries  # [tokens, heads, d] -> [tokens, heads * width]"""
        maps = self.weight.view(-1, self.width, self.d)  # [heads, width, d]
        mapped = torch.bmm(queries.transpose(0, 1), maps.transpose(1, 2))
        return mapped.transpose(0, 1).flatten(1)


def add_normed_inputs(
    attention: Any,
    config: Any,
    widths: LatentWidths,
    norms: tuple[nn.Module, nn.Module],
    bias: bool,
    quant_config: QuantizationConfig | None,
    prefix: str,
) -> None:
    """Give an attention the modules that its inputs come from.

    Args:
        attention: gets them, under their names in transformers, and their ``products``.
        config: the converted model's config.
        widths: the layer's cache widths.
        norms: of queries and keys.
        bias: of the rows.
        quant_config: vLLM's quantisation of weights.
        prefix: the layer's name.
    """
    d, hidden = source_head_dim(config), config.hidden_size
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    attention.q_norm, attention.k_norm = norms
    by_itself = attention.q_norm.weight.shape == (d,)
    attention.all_queries = not by_itself
    attention.q_proj = (ColumnParallelLinear if by_itself else ReplicatedLinear)(
        *(hidden, heads * d, config.attention_bias),
        quant_config=quant_config,
        prefix=f"{prefix}.q_proj",
    )

    def replicated(name: str, inputs: int, outputs: int, bias: bool) -> ReplicatedLinear:
        return ReplicatedLinear(
            inputs, outputs, bias, quant_config=quant_config, prefix=f"{prefix}.{name}"
        )

    attention.k_proj = replicated("k_proj", hidden, kv_heads * d, config.attention_bias)
    attention.v_proj = replicated("v_proj", hidden, kv_heads * d, config.attention_bias)
    width = config.qk_nope_head_dim + widths.qk_rope_head_dim
    attention.q_head_proj = HeadProjection(heads, width, d)
    attention.kv_a_proj_with_mqa = replicated(
        "kv_a_proj_with_mqa", 2 * kv_heads * d, widths.width, bias
    )
    ranks = get_tensor_model_parallel_world_size() if by_itself else 1
    attention.products = JoinedProducts(
        *(attention, ("q_proj", "k_proj", "v_proj")),
        (heads * d // ranks, kv_heads * d, kv_heads * d),
    )


def normed_inputs(attention: Any, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
    """Queries of this rank's heads and the rows to cache.

    Args:
        attention: of :func:`add_normed_inputs`.
        hidden_states: normed input of the layer  # [tokens, hidden]

    Returns:
        # [tokens, heads * (nope + rope)], [tokens, rank + rope]
    """
    q, k, v = attention.products(hidden_states)
    project: HeadProjection = attention.q_head_proj
    queries = by_head(attention.q_norm, q, project.d)  # [tokens, heads, d]
    if attention.all_queries:
        queries = queries[:, project.here]
    keys = by_head(attention.k_norm, k, project.d).flatten(1)
    rows, _ = attention.kv_a_proj_with_mqa(torch.cat((keys, v), dim=-1))
    return project(queries), rows
