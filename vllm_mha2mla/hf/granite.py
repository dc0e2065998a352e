"""Converted Granite models in transformers."""

from transformers import GraniteConfig, GraniteForCausalLM, GraniteModel

from vllm_mha2mla.hf.make import make_classes

GraniteMLAConfig, GraniteMLAModel, GraniteMLAForCausalLM = make_classes(
    __name__, "Granite", GraniteConfig, GraniteModel, GraniteForCausalLM
)
