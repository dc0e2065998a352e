"""Converted models of every family in vLLM, through its Transformers modelling backend.

The backend builds the transformers model and exchanges linear layers, norms, embeddings and experts
for the engine's own. Here the attention is exchanged for ours, whose projections the backend must
not see: it would join the source's query, key and value, and look for attention to serve itself.
"""

from typing import Any

from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.models.transformers import (
    TransformersForCausalLM,
    TransformersMoEForCausalLM,
)
from vllm.model_executor.models.transformers.base import Base
from vllm.model_executor.models.utils import maybe_prefix

from vllm_mha2mla.attention.projections import LatentSelfAttention
from vllm_mha2mla.config import SLIDING, latent_widths
from vllm_mha2mla.hf.attention import LatentAttention
from vllm_mha2mla.models.weights import TellsLayers

OWN = "attn"
"""The name under which the backend looks for a module's attention (``VLLM_ATTN_ATTR``)."""


class CalledByTransformers(LatentSelfAttention):
    """The engine's attention, called as transformers' decoder layers call theirs."""

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, position_ids: Tensor, **_kwargs: Any
    ) -> tuple[Tensor, None]:
        """Attention of a flat batch  # [1, tokens, hidden], [1, tokens] -> [1, tokens, hidden]"""
        return super().forward(position_ids[0], hidden_states[0]).unsqueeze(0), None


class AttentionPlace(nn.Module):
    """A place for a layer's attention; the backend exchanges the norms that stand in it.

    Args:
        attention: of the transformers model.
    """

    def __init__(self, attention: LatentAttention) -> None:
        super().__init__()
        if attention.normed:
            self.q_norm, self.k_norm = attention.q_norm, attention.k_norm

    @property
    def norms(self) -> tuple[Any, Any] | None:
        """The norms of queries and keys."""
        return (self.q_norm, self.k_norm) if hasattr(self, "q_norm") else None


class LatentBackend(TellsLayers, Base):
    """The Transformers modelling backend with latent attention."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.prepare(vllm_config)
        # Granite divides its logits; of such factors, the backend knows Cohere's alone.
        scaling = getattr(self.config, "logits_scaling", None)
        if scaling is not None and self.pp_group.is_last_rank:
            self.logits_processor.scale = 1 / scaling

    def recursive_replace(self) -> None:
        """Exchange everything but attention."""
        for name, module in list(self.model.named_modules()):
            if isinstance(module, LatentAttention):
                self.model.set_submodule(name, AttentionPlace(module))
        super().recursive_replace()

    def _create_attention_instances(self, prefix: str = "") -> None:
        """Put the engine's attention into its places."""
        for name, place in list(self.named_modules()):
            if isinstance(place, AttentionPlace):
                attention = CalledByTransformers(
                    self.config,
                    self.config.hidden_size,
                    self.config.num_attention_heads,
                    self.config.num_key_value_heads,
                    quant_config=self.quant_config,
                    bias=self.config.attention_bias,
                    cache_config=self.cache_config,
                    prefix=maybe_prefix(prefix, name),
                    norms=place.norms,
                )
                self.set_submodule(name, attention)
        if any(widths.kept for widths in latent_widths(self.config)):
            for layer, (name, fuser) in self.attention_fusers.items():
                self._keep_attention(layer, name, fuser, prefix)

    def _keep_attention(self, layer: int, name: str, fuser: Any, prefix: str) -> None:
        """Let the engine's own attention serve a layer that keeps the source's."""
        model, module = self.model_config, self.get_submodule(name)
        sliding = self.config.layer_types[layer] == SLIDING
        attention = Attention(
            num_heads=model.get_num_attention_heads(self.parallel_config),
            head_size=model.get_head_size(),
            scale=fuser.scale(module),
            num_kv_heads=model.get_num_kv_heads(self.parallel_config),
            cache_config=self.cache_config,
            quant_config=self.quant_config,
            per_layer_sliding_window=self.config.sliding_window if sliding else None,
            prefix=maybe_prefix(prefix, f"{name}.{OWN}"),
        )
        setattr(module, OWN, attention)


class LatentTransformersForCausalLM(LatentBackend, TransformersForCausalLM):
    """The registered architecture of families with one MLP per layer."""


class LatentTransformersMoEForCausalLM(LatentBackend, TransformersMoEForCausalLM):
    """The registered architecture of families with experts."""
