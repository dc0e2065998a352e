"""The converter's knowledge of a family of decoder models: classes, names and limits."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from torch import nn

from conversion.families.attention import (
    AttentionWeights,
    Projections,
    ReadsProjections,
    attention_weights,
    separate_projections,
)
from conversion.families.experts import ExpertNames, Part
from conversion.families.gguf_names import GgufNames
from conversion.families.limits import changes_with_length, part_reason


@dataclass(frozen=True)
class ModuleNames:
    """The names of a family's modules, which are the beginnings of its tensors' names.

    Attributes:
        embedding: the token embedding, in the causal language model.
        head: its language-model head; the checkpoint lacks it where it is the embedding.
        norm: the norm before the head.
        rotary: the rotary embedding, whose buffers no checkpoint holds.
        layers: the list of decoder layers.
        attention: the attention, in a layer; conversion replaces it.
        mlp: the MLP, in a layer.
    """

    embedding: str
    head: str
    norm: str
    rotary: str
    layers: str
    attention: str
    mlp: str


LIKE_LLAMA = ModuleNames(
    embedding="model.embed_tokens",
    head="lm_head",
    norm="model.norm",
    rotary="model.rotary_emb",
    layers="model.layers",
    attention="self_attn",
    mlp="mlp",
)
"""The names that nearly every family of transformers has."""


@dataclass(frozen=True)
class Family:
    """A source architecture whose attention the converter understands.

    A converted model has the source's modules and names, but for the inside of its attention: what
    is said here of models holds for both.

    Attributes:
        model_type: ``model_type`` of the source's config.
        config_class: config class of the converted model.
        causal_lm: the source's transformers model, for expected tensor names and evaluation.
        converted_causal_lm: the converted transformers model; vLLM's architecture has its name.
        decoder_layer: makes a decoder layer of the source, from its config and the layer's index.
        rotary_embedding: makes a rotary embedding, from a source's config or a converted one's.
        unsupported_reason: why a config of the family cannot be converted; ``None`` if it can.
        names: its modules.
        projections: reads the four projections of a source's attention module.
        partial_rotary: whether RoPE turns a part of each head where the config says so.
        interleaved: whether RoPE turns neighbours ``(x[2f], x[2f + 1])``.
        qk_norm: whether queries and keys are normed before RoPE, from the source's config.
        embedding_factor: of the token embeddings, from the source's config.
        residual_factor: by which the attention's output is multiplied before it is added to the
            stream, from the source's config; ``None`` where a norm stands between the two.
        logits_factor: of the head's products, from the source's config.
        experts: names of a mixture's tensors; ``None`` for a family without experts.
        gguf: names in GGUF files; ``None``: its GGUF files are not read.
    """

    model_type: str
    config_class: type[Any]
    causal_lm: type[Any]
    converted_causal_lm: type[Any]
    decoder_layer: Callable[[Any, int], Any]
    rotary_embedding: Callable[[Any], Any]
    unsupported_reason: Callable[[Any], str | None] = changes_with_length
    names: ModuleNames = LIKE_LLAMA
    projections: ReadsProjections = separate_projections
    partial_rotary: bool = False
    interleaved: bool = False
    qk_norm: Callable[[Any], bool] = lambda config: False
    embedding_factor: Callable[[Any], float] = lambda config: 1.0
    residual_factor: Callable[[Any], float | None] = lambda config: 1.0
    logits_factor: Callable[[Any], float] = lambda config: 1.0
    experts: ExpertNames | None = None
    gguf: GgufNames | None = None

    def refusal(self, config: Any) -> str | None:
        """Say why a config cannot be converted; ``None`` if it can."""
        part = None if self.partial_rotary else part_reason(config)
        return part or self.unsupported_reason(config)

    def attention_weights(self, attention: Any, config: Any, rotary: Any) -> AttentionWeights:
        """The maps of a source's attention module, split by head; float32."""
        read: Projections = self.projections(attention, config)
        normed = self.qk_norm(config)
        return attention_weights(attention, config, rotary, read, self.interleaved, normed)

    def input_width(self, config: Any) -> int:
        """The numbers that keys and values are linear maps of, which bound a latent's rank."""
        if self.qk_norm(config):
            return int(2 * config.num_key_value_heads * config.head_dim)
        return int(config.hidden_size)

    def stored_parts(self, name: str, shape: tuple[int, ...]) -> list[Part]:
        """The stored tensors of which a tensor of the model consists (``experts``)."""
        if self.experts is None:
            return [(name, shape, ())]
        return self.experts.stored_parts(name, shape)

    @property
    def embedding(self) -> str:
        """Name of the token embedding's tensor  # [vocabulary, hidden]"""
        return f"{self.names.embedding}.weight"

    @property
    def head(self) -> str:
        """Name of the language-model head's tensor  # [vocabulary, hidden]"""
        return f"{self.names.head}.weight"

    def layer_prefix(self, index: int) -> str:
        """The part of a layer's tensor names before their names within the layer."""
        return f"{self.names.layers}.{index}."

    def attention_prefix(self, index: int) -> str:
        """The part of a layer's attention tensor names before their names within the attention."""
        return f"{self.layer_prefix(index)}{self.names.attention}."

    def in_attention(self, name: str, kept: Collection[int] = ()) -> bool:
        """Tell whether a tensor of this name belongs to the attention of a layer.

        Args:
            name: of the tensor.
            kept: layers that do not count.
        """
        beginning = f"{self.names.layers}."
        if not name.startswith(beginning) or f".{self.names.attention}." not in name:
            return False
        return int(name.removeprefix(beginning).split(".")[0]) not in kept

    def layers(self, model: nn.Module) -> list[Any]:
        """The decoder layers of a causal language model."""
        return list(model.get_submodule(self.names.layers).children())

    def norm(self, model: nn.Module) -> nn.Module:
        """The norm before the head of a causal language model."""
        return model.get_submodule(self.names.norm)

    def rotary(self, model: nn.Module) -> nn.Module:
        """The rotary embedding of a causal language model."""
        return model.get_submodule(self.names.rotary)

    def set_rotary(self, model: nn.Module, rotary: nn.Module) -> None:
        """Give a causal language model this rotary embedding."""
        model.set_submodule(self.names.rotary, rotary)

    def attention(self, layer: nn.Module) -> Any:
        """The attention of a layer."""
        return layer.get_submodule(self.names.attention)

    def set_attention(self, layer: nn.Module, attention: nn.Module) -> None:
        """Give a layer this attention."""
        layer.set_submodule(self.names.attention, attention)

    def drop_mlp(self, layer: nn.Module) -> None:
        """Free the memory of a layer's MLP, without which ``past_mlp`` is of no use."""
        setattr(layer, self.names.mlp, None)
