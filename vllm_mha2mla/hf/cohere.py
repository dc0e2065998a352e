"""Converted Cohere models in transformers: where they have norms, another weight in every head."""

from typing import Any

from torch import nn
from transformers import CohereConfig, CohereForCausalLM, CohereModel
from transformers.models.cohere.modeling_cohere import CohereLayerNorm

from vllm_mha2mla.config import source_head_dim
from vllm_mha2mla.hf.make import make_classes


def _norms(config: Any) -> tuple[nn.Module, nn.Module] | None:
    if not config.use_qk_norm:
        return None
    d, eps = source_head_dim(config), config.layer_norm_eps
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    return CohereLayerNorm((heads, d), eps), CohereLayerNorm((kv_heads, d), eps)


CohereMLAConfig, CohereMLAModel, CohereMLAForCausalLM = make_classes(
    __name__, "Cohere", CohereConfig, CohereModel, CohereForCausalLM, _norms
)
