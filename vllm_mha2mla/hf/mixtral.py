"""Converted Mixtral models in transformers."""

from transformers import MixtralConfig, MixtralForCausalLM, MixtralModel

from vllm_mha2mla.hf.make import make_classes

MixtralMLAConfig, MixtralMLAModel, MixtralMLAForCausalLM = make_classes(
    __name__, "Mixtral", MixtralConfig, MixtralModel, MixtralForCausalLM
)
