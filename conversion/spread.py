"""Layer by layer widths for a budget: measured on held-out text, then allocated."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from conversion.allocation import LayerCosts, allocate
from conversion.calibration.activations import Activations
from conversion.calibration.streams import EMBEDDING, Streams, embedded_text
from conversion.candidates import final_norm
from conversion.layer import LayerConverter
from conversion.progress import Progress
from conversion.sensitivity import label_gradients, layer_costs, width_grid
from conversion.source import SourceCheckpoint
from vllm_mha2mla.config import LatentLayout

SEED = 0
# Powers of layers' costs whose sum is made small: the smaller the cache, the larger the best.
POWERS = (1.0, 1.5, 2.0)


def spread_over_layers(
    source: SourceCheckpoint,
    width: int,
    step: int,
    converter: LayerConverter,
    load: Callable[[int], Any],
    streams: Streams | None,
    held_out: Tensor,
    offload: Path | None,
    progress: Progress,
) -> dict[float, list[LatentLayout]]:
    """Widths of every layer, ``width`` numbers on average, that should lose least.

    One sweep up measures the statistics of every layer and keeps the held-out text's hidden
    states; one sweep down carries gradients of the predictions and, in each layer, measures what
    a grid of widths would cost (``sensitivity``). ``allocation`` does the rest, for several powers
    of these costs.

    Args:
        source: the original.
        width: mean numbers per token and layer.
        step: what the rotary strategy takes multiples of.
        converter: of this source, with a store for statistics and without a refit.
        load: loads one of the source's layers, float32, on the converter's device.
        streams: the calibration text; ``None`` if all statistics are in the store.
        held_out: token ids, as long as calibration windows  # [windows, tokens]
        offload: folder for the held-out text's activations; ``None``: memory.
        progress: told about every layer.

    Returns:
        of each of ``POWERS``, the layout of every layer.
    """
    layers = source.config.num_hidden_layers
    hidden = embedded_text(source, held_out, None, offload).original
    before: list[Activations] = []
    with progress.task("Measuring attention", layers) as advance:
        for index in range(layers):
            layer = load(index)
            before.append(hidden.copy(offload))
            converter.measure(layer, index, streams)
            converter.push(layer, hidden)
            del layer
            advance()
    gradients = _at_the_end(source, hidden)
    one_side = source.config.num_key_value_heads * source.config.head_dim
    grid = width_grid(width, one_side, step)
    costs: list[LayerCosts] = []
    with progress.task("Measuring what layers lose", layers) as advance:
        for index in reversed(range(layers)):
            layer = load(index)
            candidates = converter.candidates(layer, index, grid)
            attend = partial(converter.attend, layer)
            costs.append(layer_costs(layer, attend, candidates, before.pop(), gradients))
            del layer, attend, candidates
            advance()
    return {power: allocate(costs[::-1], width * layers, step, power) for power in POWERS}


def _at_the_end(source: SourceCheckpoint, hidden: Activations) -> list[list[Tensor]]:
    """Gradients after the last layer, per window and label set."""
    name = EMBEDDING if source.config.tie_word_embeddings else "lm_head.weight"
    norm, generator = final_norm(source), torch.Generator().manual_seed(SEED)
    return [label_gradients(x, norm, partial(source.pieces, name), generator) for x in hidden]
