"""Converting one layer, and carrying the calibration text through it."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from conversion.assemble import assemble
from conversion.calibration.activations import Activations
from conversion.calibration.statistics import (
    AttentionWeights,
    LayerStatistics,
    attention_weights,
    layer_statistics,
)
from conversion.calibration.store import StatisticsStore
from conversion.latent.factors import latent_target
from conversion.query import compress_query
from conversion.recipe import Recipe
from conversion.refit import OutputRefit
from vllm_mha2mla.config import LatentLayout
from vllm_mha2mla.hf.attention import LatentAttention


@dataclass
class Streams:
    """The calibration text's hidden states before a layer; updated in place, layer by layer.

    Attributes:
        original: in the source  # [windows, tokens, hidden]
        refitted: what a refit needs besides, or ``None`` if nothing is refitted.
    """

    original: Activations
    refitted: "RefitStreams | None" = None


@dataclass
class RefitStreams:
    """What a refit needs besides the original stream.

    Attributes:
        converted: hidden states in the converted model  # [windows, tokens, hidden]
        heads: outputs of the layer's converted heads  # [windows, tokens, heads * v]
    """

    converted: Activations
    heads: Activations


class LayerConverter:
    """Converts the layers of one source with one recipe.

    A layer's computations take one window at a time, on the device; streams, stored statistics and
    results stay on the CPU.

    Args:
        config: the source's config, with ``_attn_implementation`` set.
        converted_config: the converted model's.
        rotary: the source's rotary embedding.
        recipe: what to do.
        tokens: tokens per calibration window.
        device: where a layer is computed.
        store: statistics measured before, and where new ones go.
    """

    def __init__(
        self,
        config: Any,
        converted_config: Any,
        rotary: Any,
        recipe: Recipe,
        tokens: int,
        device: torch.device,
        store: StatisticsStore | None = None,
    ) -> None:
        self._config = config
        self._converted_config = converted_config
        self._rotary = rotary.to(device)
        self._recipe = recipe
        self._device = device
        self._store = store
        self._positions = torch.arange(tokens, device=device).unsqueeze(0)
        self._angles = self._rotary(torch.zeros(1, device=device), self._positions)

    @torch.no_grad()
    def convert(
        self, layer: Any, index: int, layout: LatentLayout, streams: Streams | None
    ) -> dict[str, Tensor]:
        """The converted ``self_attn`` tensors of one layer; moves ``streams`` past it.

        Args:
            layer: the source's decoder layer, float32, on the device.
            index: which layer it is.
            layout: its cache widths.
            streams: hidden states before the layer; after it when this returns. ``None`` when
                neither this layer nor a later one needs them: all statistics are in the store and
                nothing is refitted.
        """
        tensors = self._attention(layer, index, layout, streams)
        if streams is not None and streams.refitted is not None:
            tensors |= self._refit(
                layer, index, layout, tensors, streams.original, streams.refitted
            )
        elif streams is not None:
            for window, x in enumerate(streams.original):
                x = x.to(self._device)
                streams.original[window] = self._pushed(layer, x + self._attend(layer, x))
        return {name: tensor.cpu() for name, tensor in tensors.items()}

    def _attention(
        self, layer: Any, index: int, layout: LatentLayout, streams: Streams | None
    ) -> dict[str, Tensor]:
        choose, factorise = self._recipe.strategies()
        weights = attention_weights(layer.self_attn, self._config, self._rotary)
        statistics = self._statistics(layer, index, weights, streams)
        selection = choose(weights, statistics, layout.qk_rope_head_dim)
        target = latent_target(weights, statistics, selection, self._recipe.key_weight)
        factors = factorise(target, layout.kv_lora_rank)
        del target
        tensors = assemble(weights, statistics, selection, factors, self._config.attention_bias)
        if self._recipe.q_lora_rank is not None:
            tensors = compress_query(tensors, weights, statistics, layout, self._recipe.q_lora_rank)
        return tensors

    def _statistics(
        self, layer: Any, index: int, weights: AttentionWeights, streams: Streams | None
    ) -> LayerStatistics:
        stored = self._store.get(index) if self._store is not None else None
        if stored is not None:
            return stored.to(self._device)
        assert streams is not None
        inputs = (self._normed(layer, x.to(self._device)) for x in streams.original)
        statistics = layer_statistics(weights, inputs)
        if self._store is not None:
            self._store.put(index, statistics)
        return statistics

    def _refit(
        self,
        layer: Any,
        index: int,
        layout: LatentLayout,
        tensors: dict[str, Tensor],
        original: Activations,
        refitted: RefitStreams,
    ) -> dict[str, Tensor]:
        with torch.device("meta"):
            attention = LatentAttention(self._converted_config, index, layout)
        attention.load_state_dict(tensors, assign=True)
        weight, bias = tensors["o_proj.weight"], tensors["o_proj.bias"]
        refit = OutputRefit(weight, bias, self._recipe.ridge)
        for window in range(len(original)):
            x = original[window].to(self._device)  # [tokens, hidden]
            y = refitted.converted[window].to(self._device)
            normed = self._normed(layer, y)[None]
            heads = attention.attend(normed, position_ids=self._positions)[0][0]
            refitted.heads[window] = heads
            x = x + self._attend(layer, x)
            refit.add(heads, x - y)
            original[window] = self._pushed(layer, x)
        solution = refit.solve()
        weight, bias = solution["o_proj.weight"], solution["o_proj.bias"]
        for window in range(len(original)):
            y = refitted.converted[window].to(self._device)
            heads = refitted.heads[window].to(self._device)
            refitted.converted[window] = self._pushed(layer, y + heads @ weight.T + bias)
        return solution

    def _normed(self, layer: Any, x: Tensor) -> Tensor:
        normed: Tensor = layer.input_layernorm(x)
        return normed

    def _attend(self, layer: Any, x: Tensor) -> Tensor:
        """What the original attention adds to one window  # [tokens, hidden]"""
        output: Tensor = layer.self_attn(
            self._normed(layer, x)[None], position_embeddings=self._angles, attention_mask=None
        )[0]
        return output[0]

    def _pushed(self, layer: Any, x: Tensor) -> Tensor:
        """One window, its attention output added, past the rest of the layer  # [tokens, hidden]"""
        pushed: Tensor = x + layer.mlp(layer.post_attention_layernorm(x))
        return pushed
