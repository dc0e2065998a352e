"""Converted Qwen3 mixture-of-experts models in transformers: norms as in Qwen3."""

from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM, Qwen3MoeModel
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeRMSNorm

from vllm_mha2mla.hf.make import make_classes
from vllm_mha2mla.hf.normed_inputs import per_head

Qwen3MoeMLAConfig, Qwen3MoeMLAModel, Qwen3MoeMLAForCausalLM = make_classes(
    __name__,
    "Qwen3Moe",
    Qwen3MoeConfig,
    Qwen3MoeModel,
    Qwen3MoeForCausalLM,
    per_head(Qwen3MoeRMSNorm),
)
