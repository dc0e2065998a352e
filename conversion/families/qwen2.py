"""Qwen2 and Qwen2.5: biases of queries, keys and values."""

from transformers import Qwen2ForCausalLM
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer, Qwen2RotaryEmbedding

from conversion.families.family import Family
from conversion.families.gguf_names import GgufNames
from vllm_mha2mla.hf.qwen2 import Qwen2MLAConfig, Qwen2MLAForCausalLM

QWEN2 = Family(
    model_type="qwen2",
    config_class=Qwen2MLAConfig,
    causal_lm=Qwen2ForCausalLM,
    converted_causal_lm=Qwen2MLAForCausalLM,
    decoder_layer=Qwen2DecoderLayer,
    rotary_embedding=Qwen2RotaryEmbedding,
    gguf=GgufNames(architecture="qwen2"),
)
