"""Mixtral: Mistral's attention beside a mixture of experts."""

from transformers import MixtralForCausalLM
from transformers.models.mixtral.modeling_mixtral import MixtralDecoderLayer, MixtralRotaryEmbedding

from conversion.families.experts import ExpertNames
from conversion.families.family import Family
from vllm_mha2mla.hf.mixtral import MixtralMLAConfig, MixtralMLAForCausalLM

MIXTRAL = Family(
    model_type="mixtral",
    config_class=MixtralMLAConfig,
    causal_lm=MixtralForCausalLM,
    converted_causal_lm=MixtralMLAForCausalLM,
    decoder_layer=MixtralDecoderLayer,
    rotary_embedding=MixtralRotaryEmbedding,
    experts=ExpertNames(
        module="mlp",
        stored="block_sparse_moe",
        parts={"gate_up_proj": ("w1", "w3"), "down_proj": ("w2",)},
    ),
)
