"""Converted models of the first Gemma in transformers."""

from transformers import GemmaConfig, GemmaForCausalLM, GemmaModel

from vllm_mha2mla.hf.make import make_classes

GemmaMLAConfig, GemmaMLAModel, GemmaMLAForCausalLM = make_classes(
    __name__, "Gemma", GemmaConfig, GemmaModel, GemmaForCausalLM
)
