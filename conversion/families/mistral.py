"""Mistral, Nemo and others of its code, without a sliding window."""

from transformers import MistralForCausalLM
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer, MistralRotaryEmbedding

from conversion.families.family import Family
from vllm_mha2mla.hf.mistral import MistralMLAConfig, MistralMLAForCausalLM

MISTRAL = Family(
    model_type="mistral",
    config_class=MistralMLAConfig,
    causal_lm=MistralForCausalLM,
    converted_causal_lm=MistralMLAForCausalLM,
    decoder_layer=MistralDecoderLayer,
    rotary_embedding=MistralRotaryEmbedding,
)
