"""Converted Ministral models in transformers."""

from transformers import MinistralConfig, MinistralForCausalLM, MinistralModel

from vllm_mha2mla.hf.make import make_classes

MinistralMLAConfig, MinistralMLAModel, MinistralMLAForCausalLM = make_classes(
    __name__, "Ministral", MinistralConfig, MinistralModel, MinistralForCausalLM
)
