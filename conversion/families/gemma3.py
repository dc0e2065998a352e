"""Gemma-3 without images: most layers slide over a window and are kept."""

from typing import Any

from transformers import Gemma3ForCausalLM
from transformers.models.gemma3.modeling_gemma3 import Gemma3DecoderLayer, Gemma3RotaryEmbedding

from conversion.families.family import Family
from conversion.families.limits import changes_with_length
from conversion.families.rotary_kinds import of_full_attention
from vllm_mha2mla.hf.gemma3 import Gemma3MLAConfig, Gemma3MLAForCausalLM


def _unsupported_reason(config: Any) -> str | None:
    if config.use_bidirectional_attention:
        return "tokens attend to those behind them (use_bidirectional_attention)"
    return changes_with_length(config)


GEMMA3 = Family(
    model_type="gemma3_text",
    config_class=Gemma3MLAConfig,
    causal_lm=Gemma3ForCausalLM,
    converted_causal_lm=Gemma3MLAForCausalLM,
    decoder_layer=Gemma3DecoderLayer,
    rotary_embedding=of_full_attention(Gemma3RotaryEmbedding),
    unsupported_reason=_unsupported_reason,
    qk_norm=lambda config: True,
    embedding_factor=lambda config: float(config.hidden_size**0.5),
    residual_factor=lambda config: None,
)
