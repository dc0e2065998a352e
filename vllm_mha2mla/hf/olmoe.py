"""Converted OLMoE models in transformers: norms as in OLMo-2."""

from transformers import OlmoeConfig, OlmoeForCausalLM, OlmoeModel
from transformers.models.olmoe.modeling_olmoe import OlmoeRMSNorm

from vllm_mha2mla.hf.make import make_classes
from vllm_mha2mla.hf.normed_inputs import over_heads

OlmoeMLAConfig, OlmoeMLAModel, OlmoeMLAForCausalLM = make_classes(
    __name__, "Olmoe", OlmoeConfig, OlmoeModel, OlmoeForCausalLM, over_heads(OlmoeRMSNorm)
)
