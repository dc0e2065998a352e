"""Converted OLMo-3 models in transformers: norms as in OLMo-2."""

from transformers import Olmo3Config, Olmo3ForCausalLM, Olmo3Model
from transformers.models.olmo3.modeling_olmo3 import Olmo3RMSNorm

from vllm_mha2mla.hf.make import make_classes
from vllm_mha2mla.hf.normed_inputs import over_heads

Olmo3MLAConfig, Olmo3MLAModel, Olmo3MLAForCausalLM = make_classes(
    __name__, "Olmo3", Olmo3Config, Olmo3Model, Olmo3ForCausalLM, over_heads(Olmo3RMSNorm)
)
