"""Ministral, of which layers that slide over a window are kept."""

from transformers import MinistralForCausalLM
from transformers.models.ministral.modeling_ministral import (
    MinistralDecoderLayer,
    MinistralRotaryEmbedding,
)

from conversion.families.family import Family
from vllm_mha2mla.hf.ministral import MinistralMLAConfig, MinistralMLAForCausalLM

MINISTRAL = Family(
    model_type="ministral",
    config_class=MinistralMLAConfig,
    causal_lm=MinistralForCausalLM,
    converted_causal_lm=MinistralMLAForCausalLM,
    decoder_layer=MinistralDecoderLayer,
    rotary_embedding=MinistralRotaryEmbedding,
)
