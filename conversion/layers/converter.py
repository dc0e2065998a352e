"""Converting one layer."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from conversion.calibration.streams import Streams
from conversion.coding.row_maps import RowMaps
from conversion.families.qk_norm import SOURCES, with_normed_inputs
from conversion.layers.coded import coded_tensors
from conversion.layers.latent_tensors import latent_tensors
from conversion.layers.measurements import Measurements
from conversion.layers.original import for_calibration
from conversion.layers.refit import OutputRefit
from conversion.layers.refit_streams import refit_on_streams
from conversion.layers.token_weights import TokenWeights
from conversion.recipes.recipe import Recipe
from vllm_mha2mla.coding.row_code import RowCode
from vllm_mha2mla.config import LatentWidths
from vllm_mha2mla.hf.attention import LatentAttention


class LayerConverter:
    """Converts the layers of one source with one recipe; results are on the device.

    Args:
        measurements: of the source's layers.
        converted_config: the converted model's.
        recipe: what to do.

    Attributes:
        measurements: of the source's layers.
        layers: the source's.
    """

    def __init__(self, measurements: Measurements, converted_config: Any, recipe: Recipe) -> None:
        self.measurements = measurements
        self.layers = measurements.layers
        self._config = self.layers.config
        self._converted_config = for_calibration(converted_config)
        self._recipe = recipe
        self._codes: Sequence[RowCode] | None = None

    def code_rows(self, codes: Sequence[RowCode]) -> None:
        """From now on, convert to attentions whose rows are coded so.

        Args:
            codes: of every layer. The metrics of their rows are in the store.
        """
        self._codes = codes

    @torch.no_grad()
    def convert(self, layer: Any, index: int, widths: LatentWidths) -> dict[str, Tensor]:
        """The converted ``self_attn`` tensors of one layer, not refitted.

        Args:
            layer: as ``layers`` loads it.
            index: which layer it is; its statistics are in the store.
            widths: its cache widths.
        """
        ((_, tensors, _),) = self._tensors(layer, index, [widths])
        return tensors

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
        code = self._codes[index]
        return coded_tensors(self.measurements, layer, index, tensors, code, streams)

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
        for widths, tensors, maps in self._tensors(layer, index, layer_widths):
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
        attention = self.latent_attention(layer, index, widths, tensors)
        ridge = self._recipe.refit_ridge
        refit = OutputRefit(tensors["o_proj.weight"], tensors["o_proj.bias"], ridge)
        # Rounding is far below what truncation loses, but not where nothing is truncated.
        full = 2 * self._config.num_key_value_heads * self._config.head_dim
        lossy = widths.width < full or self._codes is not None
        return refit_on_streams(self.layers, layer, attention, refit, token_weights, streams, lossy)

    def _tensors(
        self, layer: Any, index: int, layer_widths: Sequence[LatentWidths]
    ) -> Iterator[tuple[LatentWidths, dict[str, Tensor], RowMaps]]:
        weights = self.layers.attention_weights(layer)
        bias = self._converted_config.attention_bias and not self.layers.qk_norm
        statistics = self.measurements.load(index)
        return latent_tensors(weights, statistics, layer_widths, self._recipe, bias)
