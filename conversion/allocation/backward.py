"""Held-out text through the source, and gradients of its predictions back down."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from conversion.allocation.sensitivity import (
    AttentionGradients,
    attention_gradients,
    label_gradients,
)
from conversion.calibration.activations import Activations
from conversion.calibration.streams import embedded_text
from conversion.layers.converter import LayerConverter
from conversion.layers.original import SourceLayers
from conversion.layers.predictions import OutputProjection, final_norm
from conversion.runtime.progress import Progress

SEED = 0


def backward_sweep(
    converter: LayerConverter,
    text: Activations | None,
    held_out: Tensor,
    offload: Path | None,
    progress: Progress,
    visit: Callable[[int, Any, AttentionGradients], None],
) -> None:
    """Up through all layers with the held-out text, and down again with gradients.

    Args:
        converter: of the source, for the statistics.
        text: the calibration text, to measure every layer's statistics on the way up; ``None``:
            they are not needed, or in the store.
        held_out: token ids, as long as calibration windows  # [windows, tokens]
        offload: folder for the held-out text's activations; ``None``: memory.
        progress: told about every layer.
        visit: called from the last layer to the first, with the layer's number, the layer without
            its MLP, and the gradients at its attention.
    """
    source_layers = converter.layers
    source = source_layers.source
    hidden = embedded_text(source, held_out, None, offload, source_layers.device).original
    before: list[Activations] = []

    def up(index: int, layer: Any) -> None:
        before.append(hidden.copy(offload))
        if text is not None:
            converter.measurements.measure(layer, index, text)
            source_layers.push(layer, text, rounded=True)
        source_layers.push(layer, hidden)

    task = "Reading held-out text" if text is None else "Measuring attention"
    for _ in source_layers.for_each_layer(up, task, progress):
        pass
    gradients = _at_the_end(source_layers, hidden)

    def down(index: int, layer: Any) -> None:
        found = attention_gradients(source_layers, layer, before.pop(), gradients)
        # Five sixths of Llama-3-8B's layer, and done with: candidates take as much.
        source.family.drop_mlp(layer)
        visit(index, layer, found)

    task = "Measuring what layers lose"
    for _ in source_layers.for_each_layer(down, task, progress, backwards=True):
        pass


def _at_the_end(source_layers: SourceLayers, hidden: Activations) -> list[list[Tensor]]:
    """Gradients after the last layer, per window and label set."""
    source, device = source_layers.source, source_layers.device
    norm, head = final_norm(source, device), OutputProjection(source, device)
    generator = torch.Generator().manual_seed(SEED)
    return [label_gradients(x.to(device), norm, head, generator) for x in hidden]
