"""Converted SmolLM3 models in transformers."""

from transformers import SmolLM3Config, SmolLM3ForCausalLM, SmolLM3Model

from vllm_mha2mla.hf.make import make_classes

SmolLM3MLAConfig, SmolLM3MLAModel, SmolLM3MLAForCausalLM = make_classes(
    __name__, "SmolLM3", SmolLM3Config, SmolLM3Model, SmolLM3ForCausalLM
)
