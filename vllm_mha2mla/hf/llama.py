"""Converted Llama models in transformers."""

from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel

from vllm_mha2mla.hf.make import make_classes

LlamaMLAConfig, LlamaMLAModel, LlamaMLAForCausalLM = make_classes(
    __name__, "Llama", LlamaConfig, LlamaModel, LlamaForCausalLM
)
