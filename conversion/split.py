"""How a budget is split between rotary and latent numbers, chosen on held-out text."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from conversion.calibration.streams import EMBEDDING, Streams, embedded_text
from conversion.divergence import mean_divergences
from conversion.layer import LayerConverter
from conversion.progress import Progress
from conversion.recipe import METHODS, Recipe
from conversion.source import SourceCheckpoint
from vllm_mha2mla.config import LatentLayout

# Rotary parts of the budget that are tried. The one nearest to the method's own gives way to it.
SHARES = (1 / 16, 1 / 8, 1 / 4, 3 / 8, 1 / 2)


def split_candidates(recipe: Recipe, kv_heads: int, head_dim: int) -> list[LatentLayout]:
    """Layouts to choose from: all of the same width, the one with the method's own share first.

    One layout where there is nothing to choose: exact widths, the whole cache, ``split: fixed``.

    Args:
        recipe: what to do.
        kv_heads: of the source.
        head_dim: of the source.

    Raises:
        RecipeError: the recipe's widths do not fit the source.
    """
    own = recipe.layout(kv_heads, head_dim)
    one_side = kv_heads * head_dim
    if recipe.split == "fixed" or recipe.kv_lora_rank is not None or own.width >= 2 * one_side:
        return [own]
    step = recipe.strategies()[0].step(kv_heads, head_dim)
    published = METHODS[recipe.method].rope_share
    nearest = min(SHARES, key=lambda share: abs(math.log(share / published)))
    ropes = [round(own.width * share / step) * step for share in SHARES if share != nearest]
    others = {rope for rope in ropes if 0 < rope <= one_side and rope < own.width}
    return [own] + [
        LatentLayout(own.width - rope, rope) for rope in sorted(others - {own.qk_rope_head_dim})
    ]


@torch.no_grad()
def held_out_divergences(
    source: SourceCheckpoint,
    candidates: Sequence[LatentLayout],
    converter: LayerConverter,
    load: Callable[[int], Any],
    streams: Streams | None,
    held_out: Tensor,
    progress: Progress,
    offload: Path | None = None,
) -> list[float]:
    """What each candidate loses: the divergence of its predictions from the original's.

    The source's layers pass by once. Every layer is converted for all candidates from the same
    statistics, and each pushes the held-out text on through its own.

    Args:
        source: the original.
        candidates: layouts, each for all layers.
        converter: of this source, with a store for statistics.
        load: loads one of the source's layers, float32, on the converter's device.
        streams: the calibration text; ``None`` if all statistics are in the store.
        held_out: token ids, as long as calibration windows  # [windows, tokens]
        progress: told about every layer.
        offload: folder for the held-out text's activations; ``None``: memory.

    Returns:
        mean KL divergence per token of each candidate, nats.
    """
    original, *converted = (
        embedded_text(source, held_out, None, offload).original for _ in range(len(candidates) + 1)
    )
    layers = source.config.num_hidden_layers
    with progress.task("Choosing the split", layers) as advance:
        for index in range(layers):
            layer = load(index)
            attention = layer.self_attn
            converter.measure(layer, index, streams)
            converter.push(layer, original)
            for layout, hidden in zip(candidates, converted, strict=True):
                # One at a time: together they can be larger than the layer.
                ((_, layer.self_attn),) = converter.candidates(layer, index, [layout])
                converter.push(layer, hidden)
                layer.self_attn = attention
            del layer, attention
            advance()
    norm = final_norm(source)
    states = [torch.cat([norm(x) for x in hidden]) for hidden in (original, *converted)]
    tied = source.config.tie_word_embeddings
    head = source.pieces(EMBEDDING if tied else "lm_head.weight")
    return mean_divergences(states[0], states[1:], head)


def final_norm(source: SourceCheckpoint) -> Any:
    """The norm between the last layer and the output projection, float32, on the CPU."""
    with torch.device("meta"):
        norm = source.family.causal_lm(source.config).model.norm
    norm.load_state_dict({"weight": source.tensor("model.norm.weight").float()}, assign=True)
    return norm
