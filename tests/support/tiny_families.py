"""A tiny model of every family, made on the spot, and the same written as latent attention."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from tests.support.as_latent import as_latent
from tests.support.ropes import linear, yarn
from tests.support.tiny import tiny_tokenizer
from vllm_mha2mla.config import SLIDING
from vllm_mha2mla.hf.registration import MODELS

BY_NAME = {model.__name__: model for model in MODELS.values()}


@dataclass(frozen=True)
class Tiny:
    """A family's tiny model.

    Attributes:
        name: the beginning of its classes' names.
        changes: keys of its config that differ from the others'.
        interleaved: rotary pairs are neighbours.
    """

    name: str
    changes: dict[str, Any] = field(default_factory=dict)
    interleaved: bool = False

    @property
    def converted_class(self) -> Any:
        return BY_NAME[f"{self.name}MLAForCausalLM"]

    def original(self, **changes: Any) -> Any:
        """Random weights, of which norms and biases matter too."""
        usual = {
            "vocab_size": 256,
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "pad_token_id": None,
            "bos_token_id": None,
            "eos_token_id": None,
        }
        model_class = getattr(transformers, f"{self.name}ForCausalLM")
        config_class = model_class.config_class
        torch.manual_seed(0)
        model = model_class(config_class(**usual | self.changes | changes))
        for name, parameter in model.named_parameters():
            if "norm" in name:
                nn.init.normal_(parameter, mean=parameter.mean().item(), std=0.3)
            else:
                nn.init.normal_(parameter, std=0.5 if name.endswith("bias") else 0.15)
        return model.eval()

    def latent(self, original: Any) -> Any:
        return as_latent(original, self.converted_class, self.interleaved)

    def save(self, folder: Path, original: Any) -> Path:
        """Save the same model with latent attention, in float32."""
        self.latent(original).save_pretrained(folder)
        tiny_tokenizer().save_pretrained(folder)
        return folder


EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
FULL = {"layer_types": ["full_attention"] * 2}
GRANITE = {
    "attention_multiplier": 0.2,
    "embedding_multiplier": 1.5,
    "residual_multiplier": 0.8,
    "logits_scaling": 3.0,
}
FAMILIES = {
    tiny.name: tiny
    for tiny in (
        Tiny("Llama"),
        Tiny("Qwen2"),
        Tiny("Mistral", {"sliding_window": None, "head_dim": 24}),
        Tiny("Ministral", FULL | {"head_dim": 16}),
        Tiny("Qwen3", {"head_dim": 16, "attention_bias": True}),
        Tiny("Phi3", {"partial_rotary_factor": 0.5, "sliding_window": None}),
        Tiny("Granite", GRANITE | {"attention_bias": True}),
        Tiny("Olmo2"),
        Tiny("SmolLM3", {"no_rope_layers": [1, 0]}),
        Tiny("Gemma", {"head_dim": 24}),
        Tiny("Olmo3", FULL | {"rope_parameters": {"full_attention": yarn()}}),
        Tiny("Mixtral", {"num_local_experts": 4}),
        Tiny("Qwen3Moe", {"head_dim": 16, "moe_intermediate_size": 32} | EXPERTS),
        Tiny("Olmoe", EXPERTS),
        Tiny("Cohere", {"use_qk_norm": True, "logit_scale": 0.4}, interleaved=True),
    )
}

S, F = SLIDING, "full_attention"
WINDOW = {"sliding_window": 48, "head_dim": 32, "max_position_embeddings": 1024}
HYBRIDS = {
    tiny.name: tiny
    for tiny in (
        Tiny(
            "Qwen2",
            WINDOW
            | {
                "hidden_size": 128,
                "use_sliding_window": True,
                "layer_types": [S, F, S, S, F],
                "num_hidden_layers": 5,
            },
        ),
        Tiny(
            "Gemma3",
            WINDOW
            | {
                "layer_types": [S, S, F, S],
                "num_hidden_layers": 4,
                "query_pre_attn_scalar": 20,
                "rope_parameters": {
                    S: {"rope_type": "default", "rope_theta": 1e3},
                    F: linear(rope_theta=1e5),
                },
            },
        ),
        Tiny(
            "Olmo3",
            WINDOW
            | {
                "hidden_size": 128,
                "layer_types": [S, S, S, F],
                "num_hidden_layers": 4,
                "rope_parameters": {S: {"rope_type": "default", "rope_theta": 1e3}, F: yarn()},
            },
        ),
    )
}
"""Models whose layers of full attention alone are converted."""
