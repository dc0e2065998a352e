"""Measurements of each layer: its rows, and the loss that errors in them make."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from coded_latents_parts.rows import RowStatistics, steadied
from conversion.allocation.sensitivity import AttentionGradients, layer_costs
from conversion.calibration.activations import Activations
from conversion.layers.converter import LayerConverter
from conversion.layers.original import SourceLayers
from vllm_mha2mla.config import LatentWidths
from vllm_mha2mla.hf.attention import LatentAttention

# Rotary columns to choose from, as parts of the original's key dimensions, and ranks, as parts of
# its cache row; the full rank is always among them.
ROPE_PARTS = (1 / 4, 1 / 2, 3 / 4)
RANK_PARTS = (1 / 8, 1 / 5, 0.3, 0.4, 0.5, 0.6, 0.7)
# Ranks whose truncation is measured; the costs of those between follow by interpolation.
MEASURED_PARTS = (1 / 8, 0.3, 0.5, 0.7)
# Eigenvalues add up many components: they bear a metric that is closer to what was measured.
SHRINKAGE, RIDGE = 0.1, 1e-2
TINY = 1e-12


@dataclass(frozen=True)
class Candidate:
    """One choice of a layer's widths.

    Attributes:
        widths: of the cache.
        truncation: nats per token that the conversion of this layer costs, nothing coded.
        components: ``lambda``: twice the nats per token that each component's loss would cost, the
            latent's by falling size  # [rank + rope]
        statistics: of the rows.
    """

    widths: LatentWidths
    truncation: float
    components: Tensor
    statistics: RowStatistics


@dataclass(frozen=True)
class InputMoments:
    """Mean and covariance of what an attention reads, first tokens aside.

    Attributes:
        mean: # [hidden]
        covariance: # [hidden, hidden]
    """

    mean: Tensor
    covariance: Tensor


@torch.no_grad()
def input_moments(layers: SourceLayers, layer: Any, hidden: Activations) -> InputMoments:
    """The moments of a layer's normed input on a text.

    Args:
        layers: the source's.
        layer: as ``layers`` loads it.
        hidden: the text before the layer  # [windows, tokens, hidden]
    """
    width, tokens = layers.config.hidden_size, 0
    total = torch.zeros(width, dtype=torch.float64)
    squares = torch.zeros(width, width, dtype=torch.float64)
    for window in hidden:
        x = layers.normed(layer, window[1:])  # [tokens - 1, hidden]
        total += x.sum(0)
        squares += x.T @ x
        tokens += len(x)
    mean = total / tokens
    covariance = squares / tokens - torch.outer(mean, mean)
    return InputMoments(mean.float(), covariance.float())


class _Rows(nn.Module):
    """Stands in for a down-projection and gives the same rows whatever it reads."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.rows = rows  # [texts, tokens, rank + rope]

    def forward(self, _hidden: Tensor) -> Tensor:
        return self.rows


def candidates(
    converter: LayerConverter,
    layer: Any,
    index: int,
    found: AttentionGradients,
    moments: InputMoments,
    step: int,
) -> list[Candidate]:
    """Every choice of widths for a layer, with its costs.

    Args:
        converter: of the source.
        layer: as ``converter.layers`` loads it; its MLP is not needed.
        index: which layer it is.
        found: the original's attention on held-out text, and gradients there.
        moments: of the attention's input.
        step: rotary columns are a multiple of it.
    """
    config = converter.layers.config
    kv_dim = config.num_key_value_heads * config.head_dim
    generator = torch.Generator().manual_seed(index)
    result = []
    for rope in sorted({max(step, round(part * kv_dim / step) * step) for part in ROPE_PARTS}):
        full = 2 * kv_dim - rope
        measured, ranks = (
            sorted({r for part in parts if 0 < (r := round(part * 2 * kv_dim)) < full} | {full})
            for parts in (MEASURED_PARTS, RANK_PARTS)
        )
        # The full rank first: its rows are those that statistics are of.
        widths = [LatentWidths(rank, rope) for rank in reversed(measured)]
        statistics: list[RowStatistics] = []
        attentions = _noting_statistics(
            converter.candidates(layer, index, widths), statistics, found, moments, generator
        )
        costs = layer_costs(found, attentions)
        logs = [math.log(max(costs[LatentWidths(rank, rope)], TINY)) for rank in measured]
        for rank in ranks:
            truncation = math.exp(float(np.interp(rank, measured, logs)))
            components = _component_costs(statistics[0], rank)
            widths_here = LatentWidths(rank, rope)
            result.append(Candidate(widths_here, truncation, components, statistics[0]))
    return result


def _noting_statistics(
    attentions: Iterator[tuple[LatentWidths, LatentAttention]],
    statistics: list[RowStatistics],
    found: AttentionGradients,
    moments: InputMoments,
    generator: torch.Generator,
) -> Iterator[tuple[LatentWidths, LatentAttention]]:
    """The same attentions; the statistics of the first one's rows are added to ``statistics``."""
    for widths, attention in attentions:
        if not statistics:
            rope = widths.qk_rope_head_dim
            statistics.append(_row_statistics(attention, rope, found, moments, generator))
        yield widths, attention
        del attention


def _row_statistics(
    attention: LatentAttention,
    rope: int,
    found: AttentionGradients,
    moments: InputMoments,
    generator: torch.Generator,
) -> RowStatistics:
    """The metric on held-out text, mean and covariance from the input's.

    A row's gradient adds up what all later queries do with it. The signs of queries are drawn at
    random for a second sample of it, which costs one more pass backwards.
    """
    down = attention.kv_a_proj_with_mqa
    W = down.weight.detach()  # [rank + rope, hidden]
    G = W.new_zeros(len(W), len(W), dtype=torch.float64)
    samples = 0
    for inputs, label_sets in zip(found.inputs, found.gradients, strict=True):
        x = inputs[None]  # [1, tokens, hidden]
        rows = down(x).detach().requires_grad_()
        attention.set_submodule("kv_a_proj_with_mqa", _Rows(rows))
        positions = torch.arange(x.shape[1])[None]
        with torch.enable_grad():
            output = attention(x, position_ids=positions)[0]
        for gradient in label_sets:
            signs = torch.randint(0, 2, (len(gradient), 1), generator=generator) * 2 - 1
            for at_output in (gradient, signs * gradient):
                g = torch.autograd.grad(output, rows, at_output[None], retain_graph=True)[0][0, 1:]
                G += g.T @ g
                samples += len(g)
    attention.set_submodule("kv_a_proj_with_mqa", down)
    mean = W @ moments.mean
    if down.bias is not None:
        mean = mean + down.bias.detach()
    return RowStatistics((G / samples).float(), W @ moments.covariance @ W.T, mean, rope)


def _component_costs(statistics: RowStatistics, rank: int) -> Tensor:
    """``lambda`` of a row's components: eigenvalues for the latent, ``G_jj C_jj`` for the rest."""
    G, C = statistics.metric, statistics.covariance
    L = torch.linalg.cholesky(steadied(G[:rank, :rank], SHRINKAGE, RIDGE))
    latent = torch.linalg.eigvalsh(L.T @ C[:rank, :rank] @ L).flip(0).clamp_min(TINY)  # [rank]
    rotary = (G.diagonal() * C.diagonal())[statistics.rank :]  # [rope]
    return torch.cat((latent, rotary))
