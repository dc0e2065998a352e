"""Qwen3's mixtures: its attention, with normed queries and keys, beside experts."""

from transformers import Qwen3MoeForCausalLM
from transformers.models.qwen3_moe.modeling_qwen3_moe import (
    Qwen3MoeDecoderLayer,
    Qwen3MoeRotaryEmbedding,
)

from conversion.families.experts import GATED, ExpertNames
from conversion.families.family import Family
from conversion.families.gguf_names import ATTENTION, EXPERTS, GATED_EXPERTS, QK_NORMS, GgufNames
from vllm_mha2mla.hf.qwen3_moe import Qwen3MoeMLAConfig, Qwen3MoeMLAForCausalLM

QWEN3_MOE = Family(
    model_type="qwen3_moe",
    config_class=Qwen3MoeMLAConfig,
    causal_lm=Qwen3MoeForCausalLM,
    converted_causal_lm=Qwen3MoeMLAForCausalLM,
    decoder_layer=Qwen3MoeDecoderLayer,
    rotary_embedding=Qwen3MoeRotaryEmbedding,
    qk_norm=lambda config: True,
    experts=ExpertNames(module="mlp", stored="mlp", parts=GATED),
    gguf=GgufNames(
        architecture="qwen3moe",
        layer=ATTENTION | QK_NORMS | {"ffn_gate_inp": "mlp.gate"},
        experts=GATED_EXPERTS,
        config=EXPERTS | {"expert_feed_forward_length": "moe_intermediate_size"},
        # llama.cpp always does, and files do not say so.
        values={"norm_topk_prob": True},
    ),
)
