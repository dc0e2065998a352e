"""Llama and the models that share its code (SmolLM, SmolLM2, TinyLlama, Yi, ...)."""

from typing import Any

from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from conversion.families.family import Family
from vllm_mha2mla.hf.llama import LlamaMLAConfig, LlamaMLAForCausalLM

# These frequencies do not change with the length of the input, so they can be stored.
STATIC_ROPE_TYPES = {"default", "linear", "llama3", "yarn"}


def _refuse(config: Any) -> str | None:
    rope = (config.rope_parameters or {}).get("rope_type", "default")
    if rope not in STATIC_ROPE_TYPES:
        return f"rope_type {rope!r} changes with the input's length"
    if config.hidden_act != "silu":
        return f"activation {config.hidden_act!r} is not what vLLM's Llama computes (silu)"
    return None


LLAMA = Family(
    model_type="llama",
    config_class=LlamaMLAConfig,
    causal_lm=LlamaForCausalLM,
    converted_causal_lm=LlamaMLAForCausalLM,
    decoder_layer=LlamaDecoderLayer,
    rotary_embedding=LlamaRotaryEmbedding,
    gguf_architecture="llama",
    refuse=_refuse,
)
