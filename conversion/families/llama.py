"""Llama and the models that share its code (SmolLM, SmolLM2, TinyLlama, Yi, ...)."""

from typing import Any

from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from conversion.families.family import Family, GgufNames
from conversion.families.limits import changes_with_length
from vllm_mha2mla.hf.llama import LlamaMLAConfig, LlamaMLAForCausalLM


def _unsupported_reason(config: Any) -> str | None:
    if config.hidden_act != "silu":
        return f"activation {config.hidden_act!r} is not what vLLM's Llama computes (silu)"
    return changes_with_length(config)


LLAMA = Family(
    model_type="llama",
    config_class=LlamaMLAConfig,
    causal_lm=LlamaForCausalLM,
    converted_causal_lm=LlamaMLAForCausalLM,
    decoder_layer=LlamaDecoderLayer,
    rotary_embedding=LlamaRotaryEmbedding,
    unsupported_reason=_unsupported_reason,
    gguf=GgufNames(
        architecture="llama",
        model={
            "token_embd": "model.embed_tokens",
            "output_norm": "model.norm",
            "output": "lm_head",
        },
        layer={
            "attn_norm": "input_layernorm",
            "attn_q": "self_attn.q_proj",
            "attn_k": "self_attn.k_proj",
            "attn_v": "self_attn.v_proj",
            "attn_output": "self_attn.o_proj",
            "ffn_norm": "post_attention_layernorm",
            "ffn_gate": "mlp.gate_proj",
            "ffn_up": "mlp.up_proj",
            "ffn_down": "mlp.down_proj",
        },
        interleaved={
            "self_attn.q_proj": "num_attention_heads",
            "self_attn.k_proj": "num_key_value_heads",
        },
    ),
)
