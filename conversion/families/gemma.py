"""Gemma 1: scaled embeddings, and norms whose weights are offsets of 1."""

from transformers import GemmaForCausalLM
from transformers.models.gemma.modeling_gemma import GemmaDecoderLayer, GemmaRotaryEmbedding

from conversion.families.family import Family
from conversion.families.gguf_names import GgufNames
from vllm_mha2mla.hf.gemma import GemmaMLAConfig, GemmaMLAForCausalLM

GEMMA = Family(
    model_type="gemma",
    config_class=GemmaMLAConfig,
    causal_lm=GemmaForCausalLM,
    converted_causal_lm=GemmaMLAForCausalLM,
    decoder_layer=GemmaDecoderLayer,
    rotary_embedding=GemmaRotaryEmbedding,
    embedding_factor=lambda config: float(config.hidden_size**0.5),
    gguf=GgufNames(architecture="gemma", norm_offset=1.0),
)
