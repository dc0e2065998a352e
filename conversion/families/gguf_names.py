"""The names and conventions of a family in GGUF files."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

NONE: MappingProxyType[str, Any] = MappingProxyType({})
OUTSIDE: MappingProxyType[str, str] = MappingProxyType(
    {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
)
"""The modules outside the layers, as nearly every family has them."""

ATTENTION: MappingProxyType[str, str] = MappingProxyType(
    {
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
    }
)
"""The modules of a layer without its MLP, as Llama has them."""

LAYER: MappingProxyType[str, str] = MappingProxyType(
    ATTENTION | {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
)
"""The modules of a layer, as Llama has them."""

QK_NORMS: MappingProxyType[str, str] = MappingProxyType(
    {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
)
"""The norms of queries and keys."""

GATED_EXPERTS: MappingProxyType[str, str] = MappingProxyType(
    {
        "ffn_gate_exps": "mlp.experts.{}.gate_proj",
        "ffn_up_exps": "mlp.experts.{}.up_proj",
        "ffn_down_exps": "mlp.experts.{}.down_proj",
    }
)
"""``experts`` of the families that store each expert's matrices under these names."""

EXPERTS: MappingProxyType[str, str] = MappingProxyType(
    {"expert_count": "num_experts", "expert_used_count": "num_experts_per_tok"}
)
"""``config`` of a mixture of experts."""

LIKE_LLAMA: MappingProxyType[str, str] = MappingProxyType(
    {
        "self_attn.q_proj": "num_attention_heads",
        "self_attn.k_proj": "num_key_value_heads",
    }
)
"""``interleaved`` of the families whose rows llama.cpp reorders as it does Llama's."""


@dataclass(frozen=True)
class GgufNames:
    """The names of a family's tensors in GGUF files, and what their metadata leaves unsaid.

    Families may share an architecture if only one of them has experts.

    Attributes:
        architecture: ``general.architecture`` of the files.
        model: GGUF module -> transformers module, for those outside the layers.
        layer: the same within a layer.
        experts: the same for tensors that hold all experts of a layer; ``{}`` in the transformers
            module stands for the expert's number.
        interleaved: transformers modules within a layer whose rows llama.cpp reorders, so that
            rotary pairs are neighbours, with the config key of their number of heads.
        norm_offset: the number that llama.cpp added to the weights of every norm.
        config: metadata, without the architecture -> config key, for those that only this family
            has, and every file of it.
        values: config values that the architecture means without saying so.
    """

    architecture: str
    model: Mapping[str, str] = field(default_factory=lambda: OUTSIDE)
    layer: Mapping[str, str] = field(default_factory=lambda: LAYER)
    experts: Mapping[str, str] = field(default_factory=lambda: NONE)
    interleaved: Mapping[str, str] = field(default_factory=lambda: NONE)
    norm_offset: float = 0.0
    config: Mapping[str, str] = field(default_factory=lambda: NONE)
    values: Mapping[str, Any] = field(default_factory=lambda: NONE)
