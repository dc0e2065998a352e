"""Converted OLMo-2 models in transformers: one norm over all heads of queries or keys."""

from transformers import Olmo2Config, Olmo2ForCausalLM, Olmo2Model
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm

from vllm_mha2mla.hf.make import make_classes
from vllm_mha2mla.hf.normed_inputs import over_heads

Olmo2MLAConfig, Olmo2MLAModel, Olmo2MLAForCausalLM = make_classes(
    __name__, "Olmo2", Olmo2Config, Olmo2Model, Olmo2ForCausalLM, over_heads(Olmo2RMSNorm)
)
