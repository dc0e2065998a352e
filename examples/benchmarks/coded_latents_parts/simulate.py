"""A conversion whose rows are coded, and its perplexity."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from coded_latents_parts.measure import Candidate, InputMoments, candidates, input_moments
from coded_latents_parts.plan import LayerPlan
from coded_latents_parts.rows import RowCode
from conversion.allocation.backward import backward_sweep
from conversion.allocation.sensitivity import AttentionGradients
from conversion.calibration.activations import Activations
from conversion.calibration.store import StatisticsStore
from conversion.calibration.streams import embedded_text
from conversion.checkpoint.config import converted_config
from conversion.layers.converter import LayerConverter
from conversion.layers.original import OutputProjection, SourceLayers, final_norm
from conversion.layers.token_weights import TokenWeights, fit_token_weights
from conversion.recipes.recipe import Recipe
from conversion.recipes.widths import cache_widths
from conversion.runtime.precision import bfloat16_products
from conversion.runtime.progress import Progress
from conversion.source import SourceCheckpoint
from conversion.text.sinks import sink_tokens
from conversion.text.windows import Windows
from vllm_mha2mla.config import LatentWidths, Provenance, SourceInfo
from vllm_mha2mla.hf.attention import LatentAttention

CPU = torch.device("cpu")


class CodedProjection(nn.Module):
    """A down-projection whose rows are coded, in float32 whatever surrounds it.

    Args:
        projection: ``kv_a_proj_with_mqa``.
        code: of its rows.
    """

    def __init__(self, projection: nn.Linear, code: RowCode) -> None:
        super().__init__()
        self._weight = projection.weight.detach()  # [rank + rope, hidden]
        self._bias = None if projection.bias is None else projection.bias.detach()
        self._code = code

    def forward(self, hidden: Tensor) -> Tensor:
        """[texts, tokens, hidden] -> [texts, tokens, rank + rope]"""
        with torch.autocast("cpu", enabled=False):
            return self._code(linear(hidden.float(), self._weight, self._bias))


class CodedConverter(LayerConverter):
    """Converts layers as the package does; attentions that have a code read coded rows.

    Attributes:
        moments: of each layer's attention input, as they are measured.
        codes: of the layers' rows, once they are chosen.
    """

    moments: dict[int, InputMoments]
    codes: dict[int, RowCode]

    @torch.no_grad()
    def measure(self, layer: Any, index: int, hidden: Activations) -> None:
        """Put a layer's statistics in the store, and its input's moments beside them."""
        super().measure(layer, index, hidden)
        self.moments[index] = input_moments(self.layers, layer, hidden)

    def latent_attention(
        self, index: int, widths: LatentWidths, tensors: dict[str, Tensor]
    ) -> LatentAttention:
        """The converted attention, on coded rows if the layer has a code."""
        attention = super().latent_attention(index, widths, tensors)
        if index in self.codes:
            coded = CodedProjection(attention.kv_a_proj_with_mqa, self.codes[index])
            attention.set_submodule("kv_a_proj_with_mqa", coded)
        return attention


def coded_converter(
    source: SourceCheckpoint, recipe: Recipe, windows: Windows, folder: Path
) -> CodedConverter:
    """A converter of ``source`` that keeps its statistics in ``folder``."""
    config = source.config
    info = SourceInfo(
        name=source.name,
        model_type=config.model_type,
        fingerprint=source.fingerprint(),
        num_key_value_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
    )
    uniform = [cache_widths(recipe, config.num_key_value_heads, config.head_dim)]
    converted = converted_config(
        source,
        uniform * config.num_hidden_layers,
        None,
        torch.float32,
        Provenance(source=info, recipe={}),
    )
    measured, tokens = windows.measured.shape
    layers = SourceLayers(source, tokens, CPU)
    store = StatisticsStore(folder)
    converter = CodedConverter(layers, converted, recipe, measured, store)
    converter.moments, converter.codes = {}, {}
    return converter


@dataclass(frozen=True)
class Measured:
    """Measurements of every layer, by its number.

    Attributes:
        choices: of widths, with their costs.
        token_weights: how much tokens count in a refit.
    """

    choices: dict[int, list[Candidate]]
    token_weights: dict[int, TokenWeights]


def measured(
    converter: CodedConverter, windows: Windows, step: int, progress: Progress
) -> Measured:
    """Measure every layer: once up with the text, once down with gradients.

    Args:
        converter: of the source.
        windows: the calibration text, and what it holds out.
        step: rotary columns are a multiple of it.
        progress: told about every layer.
    """
    text = embedded_text(converter.layers.source, windows.ids, None, None, CPU).original
    result = Measured({}, {})

    def visit(index: int, layer: Any, found: AttentionGradients) -> None:
        result.token_weights[index] = fit_token_weights(found.streams, found.gradients)
        result.choices[index] = candidates(
            converter, layer, index, found, converter.moments[index], step
        )

    backward_sweep(converter, text, windows.held_out, None, progress, visit)
    return result


@dataclass(frozen=True)
class Outcome:
    """The coded model beside the original, on the same text.

    Attributes:
        original: perplexity of the original.
        coded: perplexity of the coded model.
        divergence: ``KL(original || coded)`` of the predictions, nats per token.
    """

    original: float
    coded: float
    divergence: float

    @property
    def ratio(self) -> float:
        """Perplexity of the coded model over the original's."""
        return self.coded / self.original


@torch.no_grad()
def simulated(
    converter: CodedConverter,
    windows: Windows,
    chosen: Sequence[LayerPlan],
    token_weights: dict[int, TokenWeights],
    text: Tensor,
    progress: Progress,
) -> Outcome:
    """Convert with coded rows, refit every layer on them, and measure.

    Args:
        converter: of the source; its layers get their codes here.
        windows: the calibration text, all of which is refitted on.
        chosen: the plan of each layer.
        token_weights: how much tokens count, for each layer.
        text: token ids to measure on, in windows as long as the calibration's  # [windows, tokens]
        progress: told about every layer.
    """
    layers, source = converter.layers, converter.layers.source
    config, family = source.config, source.family
    sinks = sink_tokens(source.tokenizer(), windows.ids, config.vocab_size)
    width = config.num_attention_heads * config.head_dim
    streams = embedded_text(source, windows.ids, width, None, CPU, sinks)
    original = embedded_text(source, text, None, None, CPU).original
    coded = original.copy()

    def convert_layer(index: int, layer: Any) -> None:
        of_layer = chosen[index]
        widths, statistics = of_layer.candidate.widths, of_layer.candidate.statistics
        converter.codes[index] = RowCode(statistics, widths, of_layer.bits)
        tensors = converter.convert(layer, index, widths)
        weights = token_weights[index]
        tensors |= converter.refit(layer, index, widths, tensors, weights, streams)
        layers.push(layer, original, rounded=True)
        family.set_attention(layer, converter.latent_attention(index, widths, tensors))
        layers.push(layer, coded, rounded=True)

    for _ in layers.for_each_layer(convert_layer, "Converting with coded rows", progress):
        pass
    return _outcome(source, original, coded, text)


def _outcome(
    source: SourceCheckpoint, original: Activations, coded: Activations, text: Tensor
) -> Outcome:
    norm = final_norm(source, CPU)
    W = torch.cat(list(OutputProjection(source, CPU))).float()  # [vocabulary, hidden]
    losses, divergence = torch.zeros(2, dtype=torch.float64), 0.0
    for window, ids in enumerate(text):
        with bfloat16_products("cpu"):
            logits = [norm(states[window][:-1]) @ W.T for states in (original, coded)]
        p, q = (x.float().log_softmax(-1) for x in logits)  # [tokens - 1, vocabulary]
        for side, log in enumerate((p, q)):
            losses[side] -= log.gather(1, ids[1:, None]).double().mean()
        divergence += float((p.exp() * (p - q)).sum(-1).mean())
    first, second = (math.exp(float(loss) / len(text)) for loss in losses)
    return Outcome(first, second, divergence / len(text))
