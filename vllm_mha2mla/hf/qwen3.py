"""Converted Qwen3 models in transformers: a norm in every head of queries and keys."""

from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3Model
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from vllm_mha2mla.hf.make import make_classes
from vllm_mha2mla.hf.normed_inputs import per_head

Qwen3MLAConfig, Qwen3MLAModel, Qwen3MLAForCausalLM = make_classes(
    __name__, "Qwen3", Qwen3Config, Qwen3Model, Qwen3ForCausalLM, per_head(Qwen3RMSNorm)
)
