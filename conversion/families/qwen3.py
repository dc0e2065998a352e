"""Qwen3: every head's queries and keys are normed."""

from transformers import Qwen3ForCausalLM
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer, Qwen3RotaryEmbedding

from conversion.families.family import Family
from conversion.families.gguf_names import LAYER, QK_NORMS, GgufNames
from vllm_mha2mla.hf.qwen3 import Qwen3MLAConfig, Qwen3MLAForCausalLM

QWEN3 = Family(
    model_type="qwen3",
    config_class=Qwen3MLAConfig,
    causal_lm=Qwen3ForCausalLM,
    converted_causal_lm=Qwen3MLAForCausalLM,
    decoder_layer=Qwen3DecoderLayer,
    rotary_embedding=Qwen3RotaryEmbedding,
    qk_norm=lambda config: True,
    gguf=GgufNames(architecture="qwen3", layer=LAYER | QK_NORMS),
)
