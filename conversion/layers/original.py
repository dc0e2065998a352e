"""The source's layers, one at a time, and what they do to text window by window."""

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from conversion.calibration.activations import Activations
from conversion.families import AttentionWeights
from conversion.runtime.dense_attention import NAME as DENSE_ATTENTION
from conversion.runtime.precision import bfloat16_products
from conversion.source import SourceCheckpoint
from vllm_mha2mla.hf.attention import LatentAttention


class SourceLayers:
    """Layers of one source as they compute windows of one length.

    One layer at a time is on the device, with one window; hidden states stay on the CPU.

    Args:
        source: the original.
        tokens: per window.
        device: where a layer is computed.

    Attributes:
        source: the original.
        family: its family.
        config: the source's, with attention as calibration computes it.
        device: where a layer is computed.
        rotary: the source's rotary embedding, on the device.
    """

    def __init__(self, source: SourceCheckpoint, tokens: int, device: torch.device) -> None:
        self.source = source
        self.device = device
        self.config = for_calibration(source.config)
        self.family = source.family
        self.rotary = self.family.rotary_embedding(self.config).to(device)
        self._positions = torch.arange(tokens, device=device).unsqueeze(0)
        self._angles = self.rotary(torch.zeros(1, device=device), self._positions)

    def load(self, index: int) -> Any:
        """One of the source's layers, float32, on the device."""
        with torch.device("meta"):
            layer = self.family.decoder_layer(self.config, index)
        layer.load_state_dict(self.source.layer(index, torch.float32), assign=True)
        return layer.to(self.device).eval()

    @torch.no_grad()
    def push(self, layer: Any, hidden: Activations, rounded: bool = False) -> None:
        """Move hidden states past a layer with whatever attention it has, window by window.

        ``rounded``, for text that only averages are taken of, allows products in bfloat16.
        """
        for window, x in enumerate(hidden):
            x = x.to(self.device)
            with bfloat16_products(rounded):
                hidden[window] = self.past_mlp(layer, x + self.attend(layer, x))

    def attention_weights(self, layer: Any) -> AttentionWeights:
        """The projections of a layer's attention, split by head."""
        attention = self.family.attention(layer)
        return self.family.attention_weights(attention, self.config, self.rotary)

    def normed(self, layer: Any, x: Tensor) -> Tensor:
        """What a layer's attention reads of one window  # [tokens, hidden]"""
        return self.family.attention_input(layer, x)

    def attend(self, layer: Any, x: Tensor, alone: bool = False) -> Tensor:
        """What a layer's attention adds to one window, or to tokens that see only themselves.

        [tokens, hidden] -> [tokens, hidden]
        """
        batch = _texts(self.normed(layer, x), alone)
        tokens = batch.shape[1]
        cos, sin = self._angles
        output: Tensor = self.family.attention(layer)(
            batch,
            position_embeddings=(cos[:, :tokens], sin[:, :tokens]),
            position_ids=self._positions[:, :tokens],
            attention_mask=None,
        )[0]
        return output.flatten(0, 1)

    def heads(self, attention: LatentAttention, normed: Tensor, alone: bool) -> Tensor:
        """A converted attention's heads, likewise  # [tokens, heads * v]"""
        batch = _texts(normed, alone)
        positions = self._positions[:, : batch.shape[1]]
        return attention.attend(batch, position_ids=positions)[0].flatten(0, 1)

    def past_mlp(self, layer: Any, x: Tensor) -> Tensor:
        """One window, its attention output added, past the rest of the layer  # [tokens, hidden]"""
        return self.family.past_mlp(layer, x)


def for_calibration(config: Any) -> Any:
    """A copy of a model's configuration whose attention is the one calibration computes with."""
    config = copy.deepcopy(config)
    config._attn_implementation = DENSE_ATTENTION
    return config


def _texts(x: Tensor, alone: bool) -> Tensor:
    """A window as one text, or every token as one: [tokens, hidden] -> [texts, tokens, hidden]"""
    return x[:, None] if alone else x[None]


def output_projection(source: SourceCheckpoint) -> Iterable[Tensor]:
    """The map from normed states to logits, in blocks of rows  # each [rows, hidden]"""
    tied = source.config.tie_word_embeddings
    return source.pieces(source.family.embedding if tied else source.family.head)


def final_norm(source: SourceCheckpoint) -> Any:
    """The norm between the last layer and the output projection, float32, on the CPU."""
    with torch.device("meta"):
        norm = source.family.norm(source.family.causal_lm(source.config))
    prefix = source.family.names.norm
    weights = {name: source.tensor(f"{prefix}.{name}").float() for name in norm.state_dict()}
    norm.load_state_dict(weights, assign=True)
    return norm
