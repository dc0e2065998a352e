"""The loss of candidates for the widths of all layers, on held-out text."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from conversion.calibration.activations import Activations
from conversion.calibration.streams import embedded_text
from conversion.families.around import swapped_attention
from conversion.layers.converter import LayerConverter
from conversion.layers.held_out_loss import stream_divergences
from conversion.runtime.progress import Progress
from vllm_mha2mla.config import LatentWidths


@torch.no_grad()
def held_out_divergences(
    candidates: Sequence[Sequence[LatentWidths]],
    converter: LayerConverter,
    text: Activations | None,
    held_out: Tensor,
    progress: Progress,
    offload: Path | None = None,
) -> list[float]:
    """Measure the loss of each candidate: its predictions' divergence from the original's.

    The source's layers pass by once. Every layer is converted for all candidates from the same
    statistics, and each pushes the held-out text on through its own.

    Args:
        candidates: the layer_widths of all layers, each.
        converter: of the source's layers.
        text: the calibration text; ``None`` if all statistics are in the store.
        held_out: token ids, as long as calibration windows  # [windows, tokens]
        progress: told about every layer.
        offload: folder for the held-out text's activations; ``None``: memory.

    Returns:
        mean KL divergence per token of each candidate, nats.
    """
    source_layers = converter.layers
    source = source_layers.source
    original = embedded_text(source, held_out, None, offload, source_layers.device).original
    converted = [original.copy(offload) for _ in candidates]

    def push(index: int, layer: Any) -> None:
        if text is not None:
            converter.measurements.measure(layer, index, text)
            source_layers.push(layer, text, rounded=True)
        source_layers.push(layer, original)
        for layer_widths, hidden in zip(candidates, converted, strict=True):
            if layer_widths[index].kept:
                source_layers.push(layer, hidden)
                continue
            # One at a time: together they can be larger than the layer.
            ((_, candidate),) = converter.candidates(layer, index, [layer_widths[index]])
            with swapped_attention(source.family, layer, candidate):
                del candidate
                source_layers.push(layer, hidden)

    for _ in source_layers.for_each_layer(push, "Choosing widths", progress):
        pass
    return stream_divergences(source_layers, original, converted)
