"""Granite 3: factors of embeddings, scores, residuals and logits."""

from transformers import GraniteForCausalLM
from transformers.models.granite.modeling_granite import GraniteDecoderLayer, GraniteRotaryEmbedding

from conversion.families.family import Family
from conversion.families.gguf_names import LIKE_LLAMA, GgufNames
from vllm_mha2mla.hf.granite import GraniteMLAConfig, GraniteMLAForCausalLM

GRANITE = Family(
    model_type="granite",
    config_class=GraniteMLAConfig,
    causal_lm=GraniteForCausalLM,
    converted_causal_lm=GraniteMLAForCausalLM,
    decoder_layer=GraniteDecoderLayer,
    rotary_embedding=GraniteRotaryEmbedding,
    embedding_factor=lambda config: float(config.embedding_multiplier),
    residual_factor=lambda config: float(config.residual_multiplier),
    logits_factor=lambda config: 1 / float(config.logits_scaling),
    gguf=GgufNames(
        architecture="granite",
        interleaved=LIKE_LLAMA,
        config={
            "attention.scale": "attention_multiplier",
            "embedding_scale": "embedding_multiplier",
            "residual_scale": "residual_multiplier",
            "logit_scale": "logits_scaling",
        },
    ),
)
