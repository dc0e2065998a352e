"""Mixtral: Mistral's attention beside a mixture of experts."""

from transformers import MixtralForCausalLM
from transformers.models.mixtral.modeling_mixtral import MixtralDecoderLayer, MixtralRotaryEmbedding

from conversion.families.experts import ExpertNames
from conversion.families.family import Family
from conversion.families.gguf_names import ATTENTION, EXPERTS, LIKE_LLAMA, GgufNames
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
    gguf=GgufNames(
        architecture="llama",
        layer=ATTENTION | {"ffn_gate_inp": "block_sparse_moe.gate"},
        experts={
            "ffn_gate_exps": "block_sparse_moe.experts.{}.w1",
            "ffn_up_exps": "block_sparse_moe.experts.{}.w3",
            "ffn_down_exps": "block_sparse_moe.experts.{}.w2",
        },
        interleaved=LIKE_LLAMA,
        config=EXPERTS | {"expert_count": "num_local_experts"},
    ),
)
