"""The refit of one layer on the calibration text, which it moves past that layer."""

from typing import Any

import torch
from torch import Tensor

from conversion.calibration.activations import batches
from conversion.calibration.streams import Streams
from conversion.layers.original import SourceLayers
from conversion.layers.refit import SINK_WEIGHT, OutputRefit
from conversion.layers.token_weights import TokenWeights
from conversion.runtime.precision import bfloat16_products, round_linear_weights
from vllm_mha2mla.hf.attention import LatentAttention


@torch.no_grad()
def refit_on_streams(
    layers: SourceLayers,
    layer: Any,
    attention: LatentAttention,
    refit: OutputRefit,
    token_weights: TokenWeights,
    streams: Streams,
    lossy: bool,
) -> dict[str, Tensor]:
    """Fit a converted layer's ``o_proj`` to the original's output; move ``streams`` past the layer.

    Args:
        layers: the source's.
        layer: as ``layers`` loads it; its weights may be rounded when this returns.
        attention: the converted one; its weights may be rounded when this returns.
        refit: of its ``o_proj``.
        token_weights: how much tokens count.
        streams: hidden states before the layer, the converted model's among them.
        lossy: allow products in bfloat16.

    Returns:
        ``o_proj.weight`` and ``o_proj.bias``.
    """
    original, buffers = streams.original, streams.refit
    assert buffers is not None
    if lossy:
        round_linear_weights(layer)
        round_linear_weights(attention)
    text = len(original) - buffers.sinks
    of_text = batches(text, layers.at_once)
    of_sinks = [slice(text + b.start, text + b.stop) for b in batches(buffers.sinks, 1)]
    for batch in (*of_text, *of_sinks):
        alone = batch.start >= text
        x = _texts(original[batch].to(layers.device), alone)  # [texts, tokens, hidden]
        y = _texts(buffers.converted[batch].to(layers.device), alone)
        normed = layers.normed(layer, y)
        with bfloat16_products(layers.device.type, lossy):
            head_outputs = layers.head_outputs(attention, normed).float()
            attended = layers.attend(layer, layers.normed(layer, x)).float()
            pushed = layers.past_attention(layer, x, attended)
        share = SINK_WEIGHT * text / buffers.sinks if alone else 1
        stream = layers.stream(x, attended).flatten(0, 1)
        target = _target(layers, x, y, attended).flatten(0, 1)
        refit.add(head_outputs.flatten(0, 1), target, share * token_weights(stream))
        # After the sums, because x can be a view of these.
        original[batch], buffers.heads[batch] = pushed, head_outputs
    solution = refit.solve()
    weight, bias = solution["o_proj.weight"], solution["o_proj.bias"]
    for batch in batches(len(original), layers.at_once):
        y = buffers.converted[batch].to(layers.device)
        head_outputs = buffers.heads[batch].to(layers.device)
        with bfloat16_products(layers.device.type, lossy):
            attended = head_outputs @ weight.T + bias
            buffers.converted[batch] = layers.past_attention(layer, y, attended)
    return solution


def _target(layers: SourceLayers, original: Tensor, converted: Tensor, attended: Tensor) -> Tensor:
    """Outputs that the converted attention should have; all  # [texts, tokens, hidden]

    The original's, and what brings the converted stream back to the original's. Behind a norm
    nothing can be added for that.
    """
    factor = layers.family.residual_factor(layers.config)
    return attended if factor is None else attended + (original - converted) / factor


def _texts(windows: Tensor, alone: bool) -> Tensor:
    """Windows as texts, or every token of theirs as a text of its own.

    [windows, tokens, hidden] -> [texts, tokens, hidden]
    """
    return windows.flatten(0, 1)[:, None] if alone else windows
