"""Converted Qwen2 and Qwen2.5 models in transformers."""

from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Model

from vllm_mha2mla.hf.make import make_classes

Qwen2MLAConfig, Qwen2MLAModel, Qwen2MLAForCausalLM = make_classes(
    __name__, "Qwen2", Qwen2Config, Qwen2Model, Qwen2ForCausalLM
)
