"""The loss of a finished conversion on text that it has not seen."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from conversion.calibration.activations import Activations
from conversion.calibration.streams import embedded_text
from conversion.families.around import swapped_attention
from conversion.layers.divergence import mean_divergences
from conversion.layers.original import SourceLayers
from conversion.layers.predictions import OutputProjection, final_norm
from vllm_mha2mla.hf.attention import LatentAttention


class HeldOutLoss:
    """Held-out text on its way through the original and the converted layers.

    Args:
        layers: the source's.
        held_out: token ids, as long as calibration windows  # [windows, tokens]
        offload: folder for the text's activations; ``None``: memory.
    """

    def __init__(self, layers: SourceLayers, held_out: Tensor, offload: Path | None) -> None:
        self._layers = layers
        text = embedded_text(layers.source, held_out, None, offload, layers.device)
        self._original = text.original
        self._converted = text.original.copy(offload)

    @torch.no_grad()
    def push(self, layer: Any, attention: LatentAttention | None) -> None:
        """Move the text past one layer.

        Products are rounded to bfloat16 where the device is fast at it, in both streams alike.

        Args:
            layer: the source's; has its own attention again when this returns.
            attention: what it becomes; ``None`` for a layer that keeps its own.
        """
        self._layers.push(layer, self._original, rounded=True)
        if attention is None:
            self._layers.push(layer, self._converted, rounded=True)
            return
        with swapped_attention(self._layers.family, layer, attention):
            self._layers.push(layer, self._converted, rounded=True)

    @torch.no_grad()
    def divergence(self) -> float:
        """``KL(original || converted)`` of the predictions after the last layer, nats per token."""
        (loss,) = stream_divergences(self._layers, self._original, [self._converted])
        return loss


@torch.no_grad()
def stream_divergences(
    layers: SourceLayers, original: Activations, converted: Sequence[Activations]
) -> list[float]:
    """``KL(original || converted)`` of every converted stream after the last layer, nats per token.

    Args:
        layers: of the source whose final norm and output projection to take.
        original: hidden states of the original  # [windows, tokens, hidden]
        converted: of each converted model, on the same text  # each [windows, tokens, hidden]
    """
    device = layers.device
    norm = final_norm(layers.source, device)
    states = [torch.cat([norm(x.to(device)) for x in one]) for one in (original, *converted)]
    return mean_divergences(states[0], states[1:], OutputProjection(layers.source, device))
