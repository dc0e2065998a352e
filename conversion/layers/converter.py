"""Converting one layer."""

from collections.abc import Iterator, Sequence
from itertools import groupby, islice
from typing import Any

import torch
from torch import Tensor

from conversion.calibration.activations import Activations, batches
from conversion.calibration.statistics import LayerStatistics, layer_statistics
from conversion.calibration.store import StatisticsStore
from conversion.calibration.streams import Streams
from conversion.coding.fold import folded
from conversion.coding.row_maps import RowMaps, row_statistics
from conversion.errors import StatisticsError
from conversion.families import AttentionWeights
from conversion.families.qk_norm import SOURCES, with_normed_inputs
from conversion.latent.factors import LatentFactors, latent_target
from conversion.layers.assemble import assemble
from conversion.layers.balance import balanced, column_factors
from conversion.layers.original import SourceLayers, for_calibration
from conversion.layers.query import compress_query
from conversion.layers.refit import SINK_WEIGHT, OutputRefit
from conversion.layers.token_weights import TokenWeights
from conversion.recipes.recipe import Recipe
from conversion.rotary.selection import RotarySelection
from conversion.runtime.precision import bfloat16_products, round_linear_weights
from vllm_mha2mla.coding.row_code import RowCode
from vllm_mha2mla.config import LatentWidths
from vllm_mha2mla.hf.attention import LatentAttention


class LayerConverter:
    """Converts the layers of one source with one recipe; results are on the device.

    Args:
        layers: the source's.
        converted_config: the converted model's.
        recipe: what to do.
        measured: on how many windows attention is measured, the first of a stream.
        store: statistics measured before, and where new ones go.

    Attributes:
        layers: the source's.
        store: the statistics.
    """

    def __init__(
        self,
        layers: SourceLayers,
        converted_config: Any,
        recipe: Recipe,
        measured: int,
        store: StatisticsStore,
    ) -> None:
        self.layers = layers
        self.store = store
        self._config = layers.config
        self._converted_config = for_calibration(converted_config)
        self._recipe = recipe
        self._measured = measured
        self._loaded: tuple[int, LayerStatistics] | None = None
        self._codes: Sequence[RowCode] | None = None

    def code_rows(self, codes: Sequence[RowCode]) -> None:
        """From now on, convert to attentions whose rows are coded so.

        Args:
            codes: of every layer. The metrics of their rows are in the store.
        """
        self._codes = codes

    @torch.no_grad()
    def measure(self, layer: Any, index: int, hidden: Activations) -> None:
        """Put a layer's statistics in the store, unless they are there or the layer is kept.

        Args:
            layer: as ``layers`` loads it.
            index: which layer it is.
            hidden: the original's calibration text before the layer.
        """
        if index in self.store or index in self.layers.kept:
            return
        windows = islice(hidden, self._measured)
        inputs = (self._inputs(layer, x[None])[0] for x in windows)
        weights = self.layers.attention_weights(layer)
        self.store.put(index, layer_statistics(weights, inputs))

    def _inputs(self, layer: Any, x: Tensor) -> Tensor:
        """The inputs of the attention's maps  # [texts, tokens, hidden] -> [..., inputs]"""
        return self.layers.inputs(layer, self.layers.normed(layer, x.to(self.layers.device)))

    def load(self, index: int) -> LayerStatistics:
        """A layer's statistics from the store, on the device.

        Raises:
            StatisticsError: they were never measured, or their file is damaged.
        """
        if self._loaded is not None and self._loaded[0] == index:
            return self._loaded[1]
        statistics = self.store.get(index)
        if statistics is None:
            raise StatisticsError(f"layer {index} was not measured; use an empty store")
        statistics = statistics.to(self.layers.device)
        if self.layers.device.type != "cpu":
            # All candidates of a layer read them. Memory has them, or a file's pages, anyway.
            self._loaded = index, statistics
        return statistics

    @torch.no_grad()
    def convert(self, layer: Any, index: int, widths: LatentWidths) -> dict[str, Tensor]:
        """The converted ``self_attn`` tensors of one layer, not refitted.

        Args:
            layer: as ``layers`` loads it.
            index: which layer it is; its statistics are in the store.
            widths: its cache widths.
        """
        ((_, tensors, _),) = self._attentions(layer, index, [widths])
        return tensors

    @torch.no_grad()
    def coded(
        self, layer: Any, index: int, tensors: dict[str, Tensor], streams: Streams | None
    ) -> dict[str, Tensor]:
        """Converted tensors of one layer made ready for its code; as they are without codes.

        Args:
            layer: as ``layers`` loads it.
            index: which layer it is; its statistics are in the store.
            tensors: as ``convert`` makes them.
            streams: hidden states before the layer; those of single tokens, if there are any, tell
                what begins a text.
        """
        if self._codes is None:
            return tensors
        code, statistics = self._codes[index], self.load(index)
        widths, down = code.widths, tensors["kv_a_proj_with_mqa.weight"]
        rope = widths.qk_rope_head_dim
        rows = row_statistics(
            down,
            tensors.get("kv_a_proj_with_mqa.bias"),
            rope,
            self.store.metric(index, rope),
            *statistics.of_later_tokens(),
        )
        first = statistics.first_inputs.mean(0)
        if streams is not None and streams.refit is not None and streams.refit.sinks:
            alone = streams.refit.converted[slice(-streams.refit.sinks, None)]
            first = self._inputs(layer, alone).mean((0, 1))
            # With QK-norm, rows are maps of a part of it.
            first = first[-down.shape[1] :]
        return folded(tensors, rows, code, self._config.num_attention_heads, first)

    def candidates(
        self, layer: Any, index: int, layer_widths: Sequence[LatentWidths]
    ) -> Iterator[tuple[LatentWidths, LatentAttention]]:
        """The layer's attention converted at several widths, one after the other, not refitted.

        Without gradients where it is called; a decorator that turned them off would keep the last
        attention beside the next.

        Args:
            layer: as ``layers`` loads it.
            index: which layer it is; its statistics are in the store.
            layer_widths: the cache widths.
        """
        for widths, attention, maps in self.candidates_with_maps(layer, index, layer_widths):
            del maps
            yield widths, attention
            del attention

    def candidates_with_maps(
        self, layer: Any, index: int, layer_widths: Sequence[LatentWidths]
    ) -> Iterator[tuple[LatentWidths, LatentAttention, RowMaps]]:
        """The same, with the maps around each one's rows."""
        for widths, tensors, maps in self._attentions(layer, index, layer_widths):
            attention = self.latent_attention(layer, index, widths, tensors)
            del tensors
            yield widths, attention, maps
            del attention, maps

    def stored(self, layer: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Converted tensors as a checkpoint stores them, with those of the source that stay.

        Args:
            layer: as ``layers`` loads it.
            tensors: as ``convert`` or ``coded`` makes them.
        """
        if not self.layers.qk_norm:
            return tensors
        own = self.layers.family.attention(layer).state_dict()
        kept = {name: x for name, x in own.items() if name.startswith(SOURCES)}
        return with_normed_inputs(tensors, self._config.num_attention_heads) | kept

    def latent_attention(
        self, layer: Any, index: int, widths: LatentWidths, tensors: dict[str, Tensor]
    ) -> LatentAttention:
        """The converted attention as a module, on the device.

        Args:
            layer: as ``layers`` loads it.
            index: which layer it is.
            widths: its cache widths.
            tensors: as ``convert`` or ``coded`` makes them.
        """
        with torch.device("meta"):
            code = None if self._codes is None else self._codes[index]
            attention = LatentAttention(self._converted_config, index, widths, code)
        attention.load_state_dict(self.stored(layer, tensors), assign=True)
        return attention

    def _attentions(
        self, layer: Any, index: int, layer_widths: Sequence[LatentWidths]
    ) -> Iterator[tuple[LatentWidths, dict[str, Tensor], RowMaps]]:
        """Converted tensors at these widths; they can be half as large as the source's layer.

        Once the next are asked for, nothing here holds the last ones.
        """
        weights = self.layers.attention_weights(layer)
        statistics = self.load(index)
        for widths, selection, factors in self._factors(weights, statistics, layer_widths):
            bias = self._converted_config.attention_bias and not self.layers.qk_norm
            tensors = assemble(weights, statistics, selection, factors, bias)
            heads = self._config.num_attention_heads
            columns = column_factors(tensors, heads, widths)
            tensors = balanced(tensors, heads, widths)
            maps = _row_maps(tensors, selection, columns[widths.kv_lora_rank :], len(weights.key))
            rank = self._recipe.q_lora_rank
            if rank is not None:
                tensors = compress_query(tensors, weights, statistics, widths, rank)
            yield widths, tensors, maps
            del tensors, maps

    def _factors(
        self,
        weights: AttentionWeights,
        statistics: LayerStatistics,
        layer_widths: Sequence[LatentWidths],
    ) -> Iterator[tuple[LatentWidths, RotarySelection, LatentFactors]]:
        """Selection and factors at these widths; one selection per rotary width."""
        choose, factorise = self._recipe.strategies()
        for rope, group in groupby(layer_widths, key=lambda widths: widths.qk_rope_head_dim):
            same_rope = list(group)
            ranks = [widths.kv_lora_rank for widths in same_rope]
            selection = choose(weights, statistics, rope)
            target = latent_target(weights, statistics, selection, self._recipe.key_weight)
            if factorise.nested:
                largest = factorise(target, max(ranks))
                of_rank = {rank: largest.truncated(rank) for rank in ranks}
            else:
                of_rank = {rank: factorise(target, rank) for rank in ranks}
            del target
            for widths in same_rope:
                yield widths, selection, of_rank[widths.kv_lora_rank]

    @torch.no_grad()
    def refit(
        self,
        layer: Any,
        index: int,
        widths: LatentWidths,
        tensors: dict[str, Tensor],
        token_weights: TokenWeights,
        streams: Streams,
    ) -> dict[str, Tensor]:
        """The layer's ``o_proj`` fitted to the original's output; moves ``streams`` past the layer.

        Args:
            layer: as ``layers`` loads it; its weights may be rounded when this returns.
            index: which layer it is.
            widths: its cache widths.
            tensors: the converted ones.
            token_weights: how much tokens count.
            streams: hidden states before the layer, the converted model's among them.
        """
        original, buffers = streams.original, streams.refit
        assert buffers is not None
        attention = self.latent_attention(layer, index, widths, tensors)
        refit = OutputRefit(
            tensors["o_proj.weight"], tensors["o_proj.bias"], self._recipe.refit_ridge
        )
        # Rounding is far below what truncation loses, but not where nothing is truncated.
        full = 2 * self._config.num_key_value_heads * self._config.head_dim
        lossy = widths.width < full or self._codes is not None
        if lossy:
            round_linear_weights(layer)
            round_linear_weights(attention)
        text = len(original) - buffers.sinks
        of_text = batches(text, self.layers.at_once)
        of_sinks = [slice(text + b.start, text + b.stop) for b in batches(buffers.sinks, 1)]
        for batch in (*of_text, *of_sinks):
            alone = batch.start >= text
            x = _texts(original[batch].to(self.layers.device), alone)  # [texts, tokens, hidden]
            y = _texts(buffers.converted[batch].to(self.layers.device), alone)
            normed = self.layers.normed(layer, y)
            with bfloat16_products(self.layers.device.type, lossy):
                head_outputs = self.layers.head_outputs(attention, normed).float()
                attended = self.layers.attend(layer, self.layers.normed(layer, x)).float()
                pushed = self.layers.past_attention(layer, x, attended)
            share = SINK_WEIGHT * text / buffers.sinks if alone else 1
            stream = self.layers.stream(x, attended).flatten(0, 1)
            target = self._target(x, y, attended).flatten(0, 1)
            refit.add(head_outputs.flatten(0, 1), target, share * token_weights(stream))
            # After the sums, because x can be a view of these.
            original[batch], buffers.heads[batch] = pushed, head_outputs
        solution = refit.solve()
        weight, bias = solution["o_proj.weight"], solution["o_proj.bias"]
        for batch in batches(len(original), self.layers.at_once):
            y = buffers.converted[batch].to(self.layers.device)
            head_outputs = buffers.heads[batch].to(self.layers.device)
            with bfloat16_products(self.layers.device.type, lossy):
                attended = head_outputs @ weight.T + bias
                buffers.converted[batch] = self.layers.past_attention(layer, y, attended)
        return solution

    def _target(self, original: Tensor, converted: Tensor, attended: Tensor) -> Tensor:
        """Outputs that the converted attention should have; all  # [texts, tokens, hidden]

        The original's, and what brings the converted stream back to the original's. Behind a norm
        nothing can be added for that.
        """
        factor = self.layers.family.residual_factor(self.layers.config)
        return attended if factor is None else attended + (original - converted) / factor


def _row_maps(
    tensors: dict[str, Tensor], selection: RotarySelection, factors: Tensor, kv_heads: int
) -> RowMaps:
    """The maps around the rows of balanced tensors.

    Args:
        tensors: the ``self_attn`` tensors.
        selection: what stays in RoPE.
        factors: of the rotary columns, which balancing took from the queries  # [rope]
        kv_heads: of the source.
    """
    down = tensors["kv_a_proj_with_mqa.weight"]
    return RowMaps(
        down=down,
        bias=tensors.get("kv_a_proj_with_mqa.bias"),
        up=tensors["kv_b_proj.weight"].unflatten(0, (kv_heads, -1)),
        query_nope=selection.query_nope,
        query_rope=selection.query_rope / factors[:, None],
    )


def _texts(windows: Tensor, alone: bool) -> Tensor:
    """Windows as texts, or every token of theirs as a text of its own.

    [windows, tokens, hidden] -> [texts, tokens, hidden]
    """
    return windows.flatten(0, 1)[:, None] if alone else windows
