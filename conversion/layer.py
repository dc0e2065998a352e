"""Converting one layer, and carrying the calibration text through it."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from conversion.assemble import assemble
from conversion.calibration.statistics import attention_weights, layer_statistics
from conversion.latent.factors import latent_target
from conversion.query import compress_query
from conversion.recipe import Recipe
from conversion.refit import refit_output
from vllm_mha2mla.config import LatentLayout
from vllm_mha2mla.hf.attention import LatentAttention


@dataclass
class Streams:
    """The calibration text's hidden states before a layer; updated in place, layer by layer.

    Attributes:
        original: in the source  # [windows, tokens, hidden]
        converted: in the converted model, or ``None`` if nothing is refitted on it.
    """

    original: Tensor
    converted: Tensor | None


class LayerConverter:
    """Converts the layers of one source with one recipe.

    Args:
        config: the source's config, with ``_attn_implementation`` set.
        converted_config: the converted model's.
        rotary: the source's rotary embedding.
        recipe: what to do.
        tokens: tokens per calibration window.
        device: where a layer is computed; streams stay where they are.
    """

    def __init__(
        self,
        config: Any,
        converted_config: Any,
        rotary: Any,
        recipe: Recipe,
        tokens: int,
        device: torch.device,
    ) -> None:
        self._config = config
        self._converted_config = converted_config
        self._rotary = rotary.to(device)
        self._recipe = recipe
        self._device = device
        self._positions = torch.arange(tokens, device=device).unsqueeze(0)
        self._angles = self._rotary(torch.zeros(1, device=device), self._positions)

    @torch.no_grad()
    def convert(
        self, layer: Any, index: int, layout: LatentLayout, streams: Streams
    ) -> dict[str, Tensor]:
        """The converted ``self_attn`` tensors of one layer; moves ``streams`` past it.

        Args:
            layer: the source's decoder layer, float32, on the device.
            index: which layer it is.
            layout: its cache widths.
            streams: hidden states before the layer; after it when this returns.
        """
        choose, factorise = self._recipe.strategies()
        weights = attention_weights(layer.self_attn, self._config, self._rotary)
        inputs = torch.stack([self._normed(layer, x) for x in streams.original])
        statistics = layer_statistics(weights, inputs)
        selection = choose(weights, statistics, layout.qk_rope_head_dim)
        target = latent_target(weights, statistics, selection, self._recipe.key_weight)
        factors = factorise(target, layout.kv_lora_rank)
        tensors = assemble(weights, statistics, selection, factors, self._config.attention_bias)
        if self._recipe.q_lora_rank is not None:
            tensors = compress_query(tensors, weights, statistics, layout, self._recipe.q_lora_rank)
        outputs = torch.cat([self._attend(layer, x) for x in inputs.split(1)]).cpu()
        if streams.converted is not None:
            tensors |= self._refit(layer, index, layout, tensors, outputs, streams)
        _push(layer, streams.original, outputs, self._device)
        return tensors

    def _refit(
        self,
        layer: Any,
        index: int,
        layout: LatentLayout,
        tensors: dict[str, Tensor],
        outputs: Tensor,
        streams: Streams,
    ) -> dict[str, Tensor]:
        assert streams.converted is not None
        attention = LatentAttention(self._converted_config, index, layout).to(self._device)
        attention.load_state_dict(tensors)
        heads = torch.cat(
            [
                attention.attend(self._normed(layer, x)[None], position_ids=self._positions)[0]
                for x in streams.converted
            ]
        )  # [windows, tokens, heads * v]
        targets = (outputs + streams.original - streams.converted).to(self._device)
        refitted = refit_output(
            attention, heads.flatten(0, 1), targets.flatten(0, 1), self._recipe.ridge
        )
        added = heads @ refitted["o_proj.weight"].T + refitted["o_proj.bias"]
        _push(layer, streams.converted, added.cpu(), self._device)
        return refitted

    def _normed(self, layer: Any, x: Tensor) -> Tensor:
        normed: Tensor = layer.input_layernorm(x.to(self._device))
        return normed

    def _attend(self, layer: Any, inputs: Tensor) -> Tensor:
        output: Tensor = layer.self_attn(
            inputs, position_embeddings=self._angles, attention_mask=None
        )[0]
        return output


def _push(layer: Any, stream: Tensor, attention_outputs: Tensor, device: torch.device) -> None:
    """Move a stream past a layer, window by window, in place."""
    for row in range(len(stream)):
        x = (stream[row] + attention_outputs[row]).to(device)
        stream[row] = (x + layer.mlp(layer.post_attention_layernorm(x))).cpu()
