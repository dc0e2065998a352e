"""Converted Phi-3 and Phi-4 models in transformers."""

from transformers import Phi3Config, Phi3ForCausalLM, Phi3Model

from vllm_mha2mla.hf.make import make_classes

Phi3MLAConfig, Phi3MLAModel, Phi3MLAForCausalLM = make_classes(
    __name__, "Phi3", Phi3Config, Phi3Model, Phi3ForCausalLM
)
