"""Converting one layer, and carrying the calibration text through it."""

import copy
from collections.abc import Iterator, Sequence
from itertools import groupby, islice
from typing import Any

import torch
from torch import Tensor

from conversion.assemble import assemble
from conversion.balance import balanced
from conversion.calibration.activations import Activations
from conversion.calibration.starts import COUNT as START_COUNT
from conversion.calibration.statistics import (
    AttentionWeights,
    LayerStatistics,
    attention_weights,
    layer_statistics,
)
from conversion.calibration.store import StatisticsStore
from conversion.calibration.streams import RefitStreams, Streams
from conversion.dense_attention import NAME as DENSE_ATTENTION
from conversion.latent.factors import LatentFactors, latent_target
from conversion.mixed_precision import bfloat16_products
from conversion.query import compress_query
from conversion.recipe import Recipe
from conversion.refit import OutputRefit
from conversion.rotary import RotarySelection
from conversion.source import SourceCheckpoint
from conversion.token_weights import TokenWeights
from vllm_mha2mla.config import LatentLayout
from vllm_mha2mla.hf.attention import LatentAttention


class LayerConverter:
    """Converts the layers of one source with one recipe.

    A layer's computations take one window at a time, on the device; streams, stored statistics and
    results stay on the CPU.

    Args:
        source: the original.
        converted_config: the converted model's.
        recipe: what to do.
        measured: calibration windows that attention is measured on, the first of a stream, and
            as long as the others  # [windows, tokens]
        device: where a layer is computed.
        store: statistics measured before, and where new ones go.
    """

    def __init__(
        self,
        source: SourceCheckpoint,
        converted_config: Any,
        recipe: Recipe,
        measured: Tensor,
        device: torch.device,
        store: StatisticsStore,
    ) -> None:
        self._source = source
        self._config = _for_calibration(source.config)
        self._converted_config = _for_calibration(converted_config)
        self._rotary = source.family.rotary_embedding(self._config).to(device)
        self._recipe = recipe
        self._measured, tokens = measured.shape
        self._device = device
        self._store = store
        self._positions = torch.arange(tokens, device=device).unsqueeze(0)
        self._angles = self._rotary(torch.zeros(1, device=device), self._positions)

    def load(self, index: int) -> Any:
        """One of the source's layers, float32, on the device."""
        with torch.device("meta"):
            layer = self._source.family.decoder_layer(self._config, index)
        layer.load_state_dict(self._source.layer(index, torch.float32), assign=True)
        return layer.to(self._device).eval()

    @torch.no_grad()
    def convert(
        self,
        layer: Any,
        index: int,
        layout: LatentLayout,
        streams: Streams | None,
        token_weights: TokenWeights,
    ) -> dict[str, Tensor]:
        """The converted ``self_attn`` tensors of one layer; moves ``streams`` past it.

        Args:
            layer: as :meth:`load` gives it.
            index: which layer it is.
            layout: its cache widths.
            streams: hidden states before the layer; after it when this returns. ``None`` when
                neither this layer nor a later one needs them: all statistics are in the store and
                nothing is refitted.
            token_weights: how much tokens count in the refit.
        """
        ((_, tensors),) = self._attentions(layer, index, [layout], streams)
        if streams is not None and streams.refit is not None:
            tensors |= self._refit(
                layer, index, layout, tensors, token_weights, streams.original, streams.refit
            )
        elif streams is not None:
            self.push(layer, streams.original, rounded=True)
        return {name: tensor.cpu() for name, tensor in tensors.items()}

    @torch.no_grad()
    def measure(self, layer: Any, index: int, streams: Streams | None) -> None:
        """Put the layer's statistics in the store; moves ``streams`` past the layer."""
        weights = attention_weights(layer.self_attn, self._config, self._rotary)
        self._statistics(layer, index, weights, streams)
        if streams is not None:
            self.push(layer, streams.original, rounded=True)

    @torch.no_grad()
    def push(self, layer: Any, hidden: Activations, rounded: bool = False) -> None:
        """Move hidden states past a layer with whatever attention it has, window by window.

        ``rounded``, for text that only averages are taken of, allows products in bfloat16.
        """
        for window, x in enumerate(hidden):
            x = x.to(self._device)
            with bfloat16_products(rounded):
                hidden[window] = self._pushed(layer, x + self.attend(layer, x))

    def candidates(
        self, layer: Any, index: int, layouts: Sequence[LatentLayout]
    ) -> Iterator[tuple[LatentLayout, LatentAttention]]:
        """The layer's attention converted at several widths, one after the other, not refitted.

        Without gradients where it is called; a decorator that turned them off would keep the last
        attention beside the next.

        Args:
            layer: as :meth:`load` gives it.
            index: which layer it is; its statistics are in the store.
            layouts: the cache widths.
        """
        for layout, tensors in self._attentions(layer, index, layouts, None):
            attention = self.latent_attention(index, layout, tensors)
            del tensors
            yield layout, attention
            del attention

    def latent_attention(
        self, index: int, layout: LatentLayout, tensors: dict[str, Tensor]
    ) -> LatentAttention:
        """The converted attention as a module, on the device."""
        with torch.device("meta"):
            attention = LatentAttention(self._converted_config, index, layout)
        attention.load_state_dict(
            {name: tensor.to(self._device) for name, tensor in tensors.items()}, assign=True
        )
        return attention

    def _attentions(
        self, layer: Any, index: int, layouts: Sequence[LatentLayout], streams: Streams | None
    ) -> Iterator[tuple[LatentLayout, dict[str, Tensor]]]:
        """Converted tensors at each layout, which can be half as large as the source's layer.

        Once the next are asked for, nothing here holds the last ones.
        """
        weights = attention_weights(layer.self_attn, self._config, self._rotary)
        statistics = self._statistics(layer, index, weights, streams)
        for layout, selection, factors in self._factors(weights, statistics, layouts):
            tensors = assemble(weights, statistics, selection, factors, self._config.attention_bias)
            tensors = balanced(tensors, self._config.num_attention_heads, layout)
            rank = self._recipe.q_lora_rank
            if rank is not None:
                tensors = compress_query(tensors, weights, statistics, layout, rank)
            yield layout, tensors
            del tensors

    def _factors(
        self,
        weights: AttentionWeights,
        statistics: LayerStatistics,
        layouts: Sequence[LatentLayout],
    ) -> Iterator[tuple[LatentLayout, RotarySelection, LatentFactors]]:
        """Selection and factors at each layout; worked out once where rotary widths repeat."""
        choose, factorise = self._recipe.strategies()
        for rope, group in groupby(layouts, key=lambda layout: layout.qk_rope_head_dim):
            same_rope = list(group)
            ranks = [layout.kv_lora_rank for layout in same_rope]
            selection = choose(weights, statistics, rope)
            target = latent_target(weights, statistics, selection, self._recipe.key_weight)
            if self._recipe.factors_in_order:
                largest = factorise(target, max(ranks))
                of_rank = {rank: largest.truncated(rank) for rank in ranks}
            else:
                of_rank = {rank: factorise(target, rank) for rank in ranks}
            del target
            for layout in same_rope:
                yield layout, selection, of_rank[layout.kv_lora_rank]

    def _statistics(
        self, layer: Any, index: int, weights: AttentionWeights, streams: Streams | None
    ) -> LayerStatistics:
        stored = self._store.get(index)
        if stored is not None:
            return stored.to(self._device)
        assert streams is not None
        windows = islice(streams.original, self._measured)
        inputs = (self._normed(layer, x.to(self._device)) for x in windows)
        statistics = layer_statistics(weights, inputs)
        self._store.put(index, statistics)
        return statistics

    def _refit(
        self,
        layer: Any,
        index: int,
        layout: LatentLayout,
        tensors: dict[str, Tensor],
        counts: TokenWeights,
        original: Activations,
        buffers: RefitStreams,
    ) -> dict[str, Tensor]:
        attention = self.latent_attention(index, layout, tensors)
        weight, bias = tensors["o_proj.weight"], tensors["o_proj.bias"]
        refit = OutputRefit(weight, bias, self._recipe.ridge)
        # Rounding is far below what truncation loses, but not where nothing is truncated.
        lossy = layout.width < 2 * self._config.num_key_value_heads * self._config.head_dim
        text = len(original) - buffers.starts
        for window in range(len(original)):
            alone = window >= text
            x = original[window].to(self._device)  # [tokens, hidden]
            y = buffers.converted[window].to(self._device)
            normed = self._normed(layer, y)
            with bfloat16_products(lossy):
                heads = self._heads(attention, normed, alone).float()
                x = x + self.attend(layer, x, alone)
                original[window] = self._pushed(layer, x)
            buffers.heads[window] = heads
            share = START_COUNT * text / buffers.starts if alone else 1
            refit.add(heads, x - y, share * counts(x))
        solution = refit.solve()
        weight, bias = solution["o_proj.weight"], solution["o_proj.bias"]
        for window in range(len(original)):
            y = buffers.converted[window].to(self._device)
            heads = buffers.heads[window].to(self._device)
            with bfloat16_products(lossy):
                pushed = self._pushed(layer, y + heads @ weight.T + bias)
            buffers.converted[window] = pushed
        return solution

    def _normed(self, layer: Any, x: Tensor) -> Tensor:
        normed: Tensor = layer.input_layernorm(x)
        return normed

    def attend(self, layer: Any, x: Tensor, alone: bool = False) -> Tensor:
        """What a layer's attention adds to one window, or to tokens that see only themselves.

        [tokens, hidden] -> [tokens, hidden]
        """
        batch = _texts(self._normed(layer, x), alone)
        tokens = batch.shape[1]
        cos, sin = self._angles
        output: Tensor = layer.self_attn(
            batch,
            position_embeddings=(cos[:, :tokens], sin[:, :tokens]),
            position_ids=self._positions[:, :tokens],
            attention_mask=None,
        )[0]
        return output.flatten(0, 1)

    def _heads(self, attention: LatentAttention, normed: Tensor, alone: bool) -> Tensor:
        """The converted heads' outputs, likewise  # [tokens, heads * v]"""
        batch = _texts(normed, alone)
        positions = self._positions[:, : batch.shape[1]]
        return attention.attend(batch, position_ids=positions)[0].flatten(0, 1)

    def _pushed(self, layer: Any, x: Tensor) -> Tensor:
        """One window, its attention output added, past the rest of the layer  # [tokens, hidden]"""
        pushed: Tensor = x + layer.mlp(layer.post_attention_layernorm(x))
        return pushed


def _for_calibration(config: Any) -> Any:
    config = copy.deepcopy(config)
    config._attn_implementation = DENSE_ATTENTION
    return config


def _texts(x: Tensor, alone: bool) -> Tensor:
    """A window as one text, or every token as one: [tokens, hidden] -> [texts, tokens, hidden]"""
    return x[:, None] if alone else x[None]
