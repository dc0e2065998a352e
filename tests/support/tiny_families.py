"""A tiny model of every family, made on the spot, and the same written as latent attention."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from tests.support.as_latent import as_latent
from tests.support.tiny import tiny_tokenizer
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
        config_class = getattr(transformers, f"{self.name}Config")
        model_class = getattr(transformers, f"{self.name}ForCausalLM")
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
FAMILIES = {
    tiny.name: tiny
    for tiny in (
        Tiny("Llama"),
        Tiny("Qwen2"),
        Tiny("Qwen3", {"head_dim": 16, "attention_bias": True}),
        Tiny("Qwen3Moe", {"head_dim": 16, "moe_intermediate_size": 32} | EXPERTS),
    )
}
