"""Llama and the models that share its code (SmolLM, SmolLM2, TinyLlama, Yi, ...)."""

from typing import Any

from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from conversion.families.family import Family
from conversion.families.gguf_names import LIKE_LLAMA, GgufNames
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
    gguf=GgufNames(architecture="llama", interleaved=LIKE_LLAMA),
)
