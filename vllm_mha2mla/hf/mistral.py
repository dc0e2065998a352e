"""Converted Mistral models in transformers."""

from transformers import MistralConfig, MistralForCausalLM, MistralModel

from vllm_mha2mla.hf.make import make_classes

MistralMLAConfig, MistralMLAModel, MistralMLAForCausalLM = make_classes(
    __name__, "Mistral", MistralConfig, MistralModel, MistralForCausalLM
)
