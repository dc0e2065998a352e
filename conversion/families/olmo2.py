"""OLMo-2: queries and keys are normed over all heads, and norms stand after attention and MLP."""

from transformers import Olmo2ForCausalLM
from transformers.models.olmo2.modeling_olmo2 import Olmo2DecoderLayer, Olmo2RotaryEmbedding

from conversion.families.family import Family
from conversion.families.gguf_names import LAYER, QK_NORMS, GgufNames
from vllm_mha2mla.hf.olmo2 import Olmo2MLAConfig, Olmo2MLAForCausalLM

OLMO2 = Family(
    model_type="olmo2",
    config_class=Olmo2MLAConfig,
    causal_lm=Olmo2ForCausalLM,
    converted_causal_lm=Olmo2MLAForCausalLM,
    decoder_layer=Olmo2DecoderLayer,
    rotary_embedding=Olmo2RotaryEmbedding,
    qk_norm=lambda config: True,
    residual_factor=lambda config: None,
    gguf=GgufNames(
        architecture="olmo2",
        layer={
            **{name: module for name, module in LAYER.items() if not name.endswith("norm")},
            **QK_NORMS,
            "post_attention_norm": "post_attention_layernorm",
            "post_ffw_norm": "post_feedforward_layernorm",
        },
    ),
)
