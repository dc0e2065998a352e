"""Command-R: attention and MLP side by side, and RoPE of neighbouring dimensions."""

from transformers import CohereForCausalLM
from transformers.models.cohere.modeling_cohere import CohereDecoderLayer, CohereRotaryEmbedding

from conversion.families.family import Family
from conversion.families.gguf_names import LAYER, QK_NORMS, GgufNames
from vllm_mha2mla.hf.cohere import CohereMLAConfig, CohereMLAForCausalLM

COHERE = Family(
    model_type="cohere",
    config_class=CohereMLAConfig,
    causal_lm=CohereForCausalLM,
    converted_causal_lm=CohereMLAForCausalLM,
    decoder_layer=CohereDecoderLayer,
    rotary_embedding=CohereRotaryEmbedding,
    interleaved=True,
    qk_norm=lambda config: bool(config.use_qk_norm),
    logits_factor=lambda config: float(config.logit_scale),
    gguf=GgufNames(
        architecture="command-r",
        layer=LAYER | QK_NORMS,
        config={"logit_scale": "logit_scale"},
    ),
)
