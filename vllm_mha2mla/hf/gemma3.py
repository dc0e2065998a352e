"""Converted Gemma-3 models in transformers: only layers without a window are latent."""

from transformers import Gemma3ForCausalLM, Gemma3TextConfig, Gemma3TextModel
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm

from vllm_mha2mla.hf.make import make_classes
from vllm_mha2mla.hf.normed_inputs import per_head

Gemma3MLAConfig, Gemma3MLAModel, Gemma3MLAForCausalLM = make_classes(
    __name__,
    "Gemma3",
    Gemma3TextConfig,
    Gemma3TextModel,
    Gemma3ForCausalLM,
    per_head(Gemma3RMSNorm),
)
