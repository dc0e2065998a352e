"""What each layer loses at some cache widths, in nats of the model's predictions."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from conversion.mixed_precision import bfloat16_products
from vllm_mha2mla.config import LatentLayout
from vllm_mha2mla.hf.attention import LatentAttention

# Label sets drawn per window: each is one more backward pass.
SAMPLES = 2
# Measured widths, as parts of the mean width a layer may have. No layer gets more than the last:
# of a small budget, some layers want twice the mean and others next to nothing.
ROPE_PARTS = (0.0, 0.3, 0.55, 0.8)
RANK_PARTS = (0.12, 0.5, 1.05, 1.55, 2.1)
# Of a large one no layer wants that much. Parts of the source's keys at which the widths end, but
# not below the third rotary and the third latent width: measuring wider ones takes memory.
MOST_ROPE, MOST_RANK = 0.6, 1.25


def width_grid(width: int, one_side: int, step: int) -> list[LatentLayout]:
    """The widths to measure for a mean width per layer: every rank with every rotary width.

    Args:
        width: mean numbers per token and layer that the budget allows.
        one_side: numbers of the source's keys, ``kv_heads * head_dim``.
        step: what the rotary strategy takes multiples of.
    """
    most_rope = min(one_side, max(width * ROPE_PARTS[2], one_side * MOST_ROPE))
    most_rank = min(2 * one_side, max(width * RANK_PARTS[2], one_side * MOST_RANK))
    parts = (min(width * part, most_rope) for part in ROPE_PARTS)
    ropes = sorted({min(one_side // step, round(rope / step)) * step for rope in parts})
    ranks = sorted({max(1, round(min(width * part, most_rank))) for part in RANK_PARTS})
    return [LatentLayout(rank, rope) for rope in ropes for rank in ranks]


@torch.no_grad()
def label_gradients(
    hidden: Tensor,
    norm: Any,
    head: Callable[[], Iterable[Tensor]],
    generator: torch.Generator,
) -> list[Tensor]:
    """Gradients of the negative log-likelihood of labels that the model itself draws.

    Averaged over labels, ``g g^T`` is the Fisher information of the predictions, so that a small
    error ``e`` of what ``g`` is the gradient of costs ``KL = E (g . e)^2 / 2``. The vocabulary
    passes by twice, piece by piece: once to normalise and to draw labels (the largest logit plus
    Gumbel noise is a draw from the softmax), once for ``g = sum_v p_v W_v - W_label``.

    Args:
        hidden: after the last layer  # [tokens, hidden]
        norm: the final norm.
        head: starts a pass over the output projection in blocks of rows  # each [rows, hidden]
        generator: draws the labels.

    Returns:
        for each of ``SAMPLES`` label sets, the gradient at ``hidden``  # each [tokens, hidden]
    """
    with torch.enable_grad():
        leaf = hidden.detach().requires_grad_()
        normed = norm(leaf)
    states = normed.detach()
    tokens = len(states)
    normaliser = states.new_full((tokens,), float("-inf"))
    best = states.new_full((SAMPLES, tokens), float("-inf"))
    labels = torch.zeros(SAMPLES, tokens, dtype=torch.long)
    start = 0
    for rows in head():
        logits = states @ rows.float().T  # [tokens, rows]
        normaliser = torch.logaddexp(normaliser, logits.logsumexp(-1))
        for sample in range(SAMPLES):
            noise = -torch.empty_like(logits).exponential_(generator=generator).log_()
            value, index = noise.add_(logits).max(-1)
            better = value > best[sample]
            best[sample] = torch.where(better, value, best[sample])
            labels[sample] = torch.where(better, index + start, labels[sample])
        start += len(rows)
    mean = torch.zeros_like(states)  # sum_v p_v W_v
    drawn = states.new_zeros(SAMPLES, *states.shape)  # W_label
    start = 0
    for rows in head():
        W = rows.float()
        mean += (states @ W.T).sub_(normaliser[:, None]).exp_() @ W
        here = (labels >= start) & (labels < start + len(rows))
        drawn[here] = W[labels[here] - start]
        start += len(rows)
    return [torch.autograd.grad(normed, leaf, mean - rows, retain_graph=True)[0] for rows in drawn]


def layer_costs(
    layer: Any,
    attend: Callable[[Tensor], Tensor],
    converted: Iterable[tuple[LatentLayout, LatentAttention]],
    windows: Iterable[Tensor],
    gradients: list[list[Tensor]],
) -> dict[LatentLayout, float]:
    """KL per token of converting this layer alone, to second order; moves ``gradients`` below it.

    With ``g_t`` the gradient of a sampled log-likelihood at the attention's output and ``e_t`` the
    converted attention's error there, ``sum_t (g_t . e_t)^2 / 2`` per token: errors of different
    tokens are taken as independent, and so are layers, so costs of layers add up. Measured beside
    the true divergence on SmolLM2-135M, the two agree within a third for nearly every layer.

    Args:
        layer: the source's decoder layer, float32.
        attend: its attention block, norm included  # [tokens, hidden] -> [tokens, hidden]
        converted: converted attention blocks to measure, one in memory at a time.
        windows: the source's hidden states before the layer  # each [tokens, hidden]
        gradients: per window and label set, at the layer's output; replaced by those at its input.
    """
    normed, true = [], []
    at_attention: list[list[Tensor]] = []
    for window, x in enumerate(windows):
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            middle = leaf + attend(leaf)
            output = middle + layer.mlp(layer.post_attention_layernorm(middle))
        at_attention.append([])
        for sample, g in enumerate(gradients[window]):
            here, below = torch.autograd.grad(output, (middle, leaf), g, retain_graph=True)
            at_attention[-1].append(here)
            gradients[window][sample] = below
        normed.append(layer.input_layernorm(leaf).detach())
        true.append(middle.detach() - x)
    positions = torch.arange(len(normed[0]), device=normed[0].device)[None]
    scale = 0.5 / (len(normed) * len(normed[0]) * len(gradients[0]))
    costs = {}
    for layout, attention in converted:
        cost = 0.0
        for x, a, window_gradients in zip(normed, true, at_attention, strict=True):
            with torch.no_grad(), bfloat16_products():
                error = attention(x[None], position_ids=positions)[0][0] - a
            cost += sum(float((g * error).sum(-1).square().sum()) for g in window_gradients)
        costs[layout] = scale * cost
    return costs
