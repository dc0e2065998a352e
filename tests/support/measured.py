"""A tiny model's first layer with its statistics, and RoPE as a matrix."""

from functools import cache

import torch
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from conversion.calibration.statistics import layer_statistics
from conversion.families.llama import LLAMA
from tests.support.tiny import tiny_llama


@cache
def measure(variant, **changes):
    """Return the layer's weights, its statistics and the inputs they are of.

    Hundreds of tests ask for the same six results; none of them writes into one.
    """
    model = tiny_llama(variant, **changes)
    model.requires_grad_(False)
    attention = model.model.layers[0].self_attn
    weights = LLAMA.attention_weights(attention, model.config, LlamaRotaryEmbedding(model.config))
    torch.manual_seed(3)
    # A mean far from zero, so that centring would show.
    inputs = torch.randn(3, 40, 64) + torch.linspace(-1, 1, 64)
    return weights, layer_statistics(weights, inputs), inputs


def rotation(inv_freq, distance):
    """Return the real matrix that rotates all pairs, halves layout  # [2 * pairs, 2 * pairs]"""
    cos, sin = (inv_freq * distance).cos(), (inv_freq * distance).sin()
    return torch.cat(
        (
            torch.cat((cos.diag(), -sin.diag()), 1),
            torch.cat((sin.diag(), cos.diag()), 1),
        )
    )
