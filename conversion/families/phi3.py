"""Phi-3 and Phi-4: fused projections, and in some only a part of every head turns."""

from typing import Any

from transformers import Phi3ForCausalLM
from transformers.models.phi3.modeling_phi3 import Phi3DecoderLayer, Phi3RotaryEmbedding

from conversion.families.attention import Projections
from conversion.families.family import Family
from conversion.families.gguf_names import GgufNames
from vllm_mha2mla.hf.phi3 import Phi3MLAConfig, Phi3MLAForCausalLM


def _projections(attention: Any, config: Any) -> Projections:
    kv_heads = config.num_key_value_heads
    rows = [heads * config.head_dim for heads in (config.num_attention_heads, kv_heads, kv_heads)]
    query, key, value = attention.qkv_proj.weight.split(rows)
    output = attention.o_proj.weight, None
    return Projections((query, None), (key, None), (value, None), output)


PHI3 = Family(
    model_type="phi3",
    config_class=Phi3MLAConfig,
    causal_lm=Phi3ForCausalLM,
    converted_causal_lm=Phi3MLAForCausalLM,
    decoder_layer=Phi3DecoderLayer,
    rotary_embedding=Phi3RotaryEmbedding,
    projections=_projections,
    partial_rotary=True,
    gguf=GgufNames(
        architecture="phi3",
        layer={
            "attn_norm": "input_layernorm",
            "attn_qkv": "self_attn.qkv_proj",
            "attn_output": "self_attn.o_proj",
            "ffn_norm": "post_attention_layernorm",
            "ffn_up": "mlp.gate_up_proj",
            "ffn_down": "mlp.down_proj",
        },
    ),
)
