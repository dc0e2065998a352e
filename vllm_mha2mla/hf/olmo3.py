"""Converted OLMo-3 models in transformers: norms as in OLMo-2."""

from typing import Any

from torch import nn
from transformers import Olmo3Config, Olmo3ForCausalLM, Olmo3Model
from transformers.models.olmo3.modeling_olmo3 import Olmo3RMSNorm

from vllm_mha2mla.hf.make import make_classes
from vllm_mha2mla.hf.normed_inputs import source_head_dim


def _norms(config: Any) -> tuple[nn.Module, nn.Module]:
    d, eps = source_head_dim(config), config.rms_norm_eps
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    return Olmo3RMSNorm(heads * d, eps), Olmo3RMSNorm(kv_heads * d, eps)


Olmo3MLAConfig, Olmo3MLAModel, Olmo3MLAForCausalLM = make_classes(
    __name__, "Olmo3", Olmo3Config, Olmo3Model, Olmo3ForCausalLM, _norms
)
