"""OLMoE: queries and keys are normed over all heads, beside a mixture of experts."""

from transformers import OlmoeForCausalLM
from transformers.models.olmoe.modeling_olmoe import OlmoeDecoderLayer, OlmoeRotaryEmbedding

from conversion.families.experts import GATED, ExpertNames
from conversion.families.family import Family
from conversion.families.gguf_names import ATTENTION, EXPERTS, GATED_EXPERTS, QK_NORMS, GgufNames
from vllm_mha2mla.hf.olmoe import OlmoeMLAConfig, OlmoeMLAForCausalLM

OLMOE = Family(
    model_type="olmoe",
    config_class=OlmoeMLAConfig,
    causal_lm=OlmoeForCausalLM,
    converted_causal_lm=OlmoeMLAForCausalLM,
    decoder_layer=OlmoeDecoderLayer,
    rotary_embedding=OlmoeRotaryEmbedding,
    qk_norm=lambda config: True,
    experts=ExpertNames(module="mlp", stored="mlp", parts=GATED),
    gguf=GgufNames(
        architecture="olmoe",
        layer=ATTENTION | QK_NORMS | {"ffn_gate_inp": "mlp.gate"},
        experts=GATED_EXPERTS,
        config=EXPERTS,
    ),
)
