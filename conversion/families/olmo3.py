"""OLMo-3: OLMo-2, of which most layers slide over a window and are kept."""

from transformers import Olmo3ForCausalLM
from transformers.models.olmo3.modeling_olmo3 import Olmo3DecoderLayer, Olmo3RotaryEmbedding

from conversion.families.family import Family
from conversion.families.rotary_kinds import of_full_attention
from vllm_mha2mla.hf.olmo3 import Olmo3MLAConfig, Olmo3MLAForCausalLM

OLMO3 = Family(
    model_type="olmo3",
    config_class=Olmo3MLAConfig,
    causal_lm=Olmo3ForCausalLM,
    converted_causal_lm=Olmo3MLAForCausalLM,
    decoder_layer=Olmo3DecoderLayer,
    rotary_embedding=of_full_attention(Olmo3RotaryEmbedding),
    qk_norm=lambda config: True,
    residual_factor=lambda config: None,
)
