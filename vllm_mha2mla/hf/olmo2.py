"""Converted OLMo-2 models in transformers: one norm over all heads of queries or keys."""

from typing import Any

from torch import nn
from transformers import Olmo2Config, Olmo2ForCausalLM, Olmo2Model
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm

from vllm_mha2mla.hf.make import make_classes
from vllm_mha2mla.hf.normed_inputs import source_head_dim


def _norms(config: Any) -> tuple[nn.Module, nn.Module]:
    d, eps = source_head_dim(config), config.rms_norm_eps
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    return Olmo2RMSNorm(heads * d, eps), Olmo2RMSNorm(kv_heads * d, eps)


Olmo2MLAConfig, Olmo2MLAModel, Olmo2MLAForCausalLM = make_classes(
    __name__, "Olmo2", Olmo2Config, Olmo2Model, Olmo2ForCausalLM, _norms
)
