"""Converted OLMoE models in transformers: norms as in OLMo-2."""

from typing import Any

from torch import nn
from transformers import OlmoeConfig, OlmoeForCausalLM, OlmoeModel
from transformers.models.olmoe.modeling_olmoe import OlmoeRMSNorm

from vllm_mha2mla.hf.make import make_classes
from vllm_mha2mla.hf.normed_inputs import source_head_dim


def _norms(config: Any) -> tuple[nn.Module, nn.Module]:
    d, eps = source_head_dim(config), config.rms_norm_eps
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    return OlmoeRMSNorm(heads * d, eps), OlmoeRMSNorm(kv_heads * d, eps)


OlmoeMLAConfig, OlmoeMLAModel, OlmoeMLAForCausalLM = make_classes(
    __name__, "Olmoe", OlmoeConfig, OlmoeModel, OlmoeForCausalLM, _norms
)
