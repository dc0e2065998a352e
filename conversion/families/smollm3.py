"""SmolLM3: one layer in four has no RoPE."""

from transformers import SmolLM3ForCausalLM
from transformers.models.smollm3.modeling_smollm3 import SmolLM3DecoderLayer, SmolLM3RotaryEmbedding

from conversion.families.family import Family
from conversion.families.gguf_names import LIKE_LLAMA, GgufNames
from vllm_mha2mla.hf.smollm3 import SmolLM3MLAConfig, SmolLM3MLAForCausalLM

SMOLLM3 = Family(
    model_type="smollm3",
    config_class=SmolLM3MLAConfig,
    causal_lm=SmolLM3ForCausalLM,
    converted_causal_lm=SmolLM3MLAForCausalLM,
    decoder_layer=SmolLM3DecoderLayer,
    rotary_embedding=SmolLM3RotaryEmbedding,
    gguf=GgufNames(architecture="smollm3", interleaved=LIKE_LLAMA),
)
