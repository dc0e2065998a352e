"""The loss's gradient at every token's keys and values, rotated or not."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from conversion.families import AttentionWeights
from conversion.runtime.linalg import head_groups
from vllm_mha2mla.rope import apply_rotary


@dataclass(frozen=True)
class KeyValueGradients:
    """The second moment of the loss's gradients at a layer's keys and values.

    With ``s_h[m, n]`` the score of query ``m`` and key ``n`` in head ``h``, and ``L`` the negative
    log-likelihood of drawn labels, a token ``n`` has the gradients

        a_h = scale sum_m dL/ds_h[m, n] q_h[m]              at a key that does not turn
        b_h = scale sum_m dL/ds_h[m, n] R(m - n) q_h[m]     at a key that RoPE turns
        v_g = dL/dv_g[n]                                    at a value

    ``q`` is as before RoPE. A gradient at whatever a converted layer caches is a linear function of
    these (``row_maps.py``): one measurement serves all its widths.

    Attributes:
        moment: ``E gamma gamma^T`` over tokens but each text's first one, float32, with ``gamma =
            [a ; b ; v]``  # [(2 * heads + kv_heads) * d, (2 * heads + kv_heads) * d]
        heads: query heads.
        kv_heads: KV heads.
    """

    moment: Tensor
    heads: int
    kv_heads: int


@torch.no_grad()
def key_value_gradients(
    weights: AttentionWeights,
    inputs: Sequence[Tensor],
    gradients: Sequence[Sequence[Tensor]],
) -> KeyValueGradients:
    """Measure one layer.

    Args:
        weights: the layer's attention.
        inputs: what its maps act on, of some texts (``AttentionWeights.parts``)
        gradients: of every text, ``dL`` at the attention's output for each set of labels
            # each [tokens, hidden]
    """
    heads, d, _ = weights.query.shape
    kv_heads = len(weights.key)
    width = (2 * heads + kv_heads) * d
    moment = weights.query.new_zeros(width, width)
    samples = 0
    for x, label_sets in zip(inputs, gradients, strict=True):
        for gamma in _of_text(weights, x, label_sets):
            later = gamma[1:].flatten(1)
            moment.addmm_(later.T, later)
            samples += len(later)
    return KeyValueGradients(moment.div_(max(1, samples)), heads, kv_heads)


def _of_text(weights: AttentionWeights, x: Tensor, gradients: Sequence[Tensor]) -> list[Tensor]:
    """``gamma`` of one text for each set of labels  # each [tokens, 2 * heads + kv_heads, d]"""
    heads, d, _ = weights.query.shape
    kv_heads, tokens = len(weights.key), len(x)
    angles = torch.arange(tokens, device=x.device)[:, None] * weights.inv_freq  # [tokens, d/2]
    cos, sin = angles.cos(), angles.sin()
    of_queries, x = weights.parts(x)
    k = torch.einsum("te,gde->gtd", x, weights.key) + weights.key_bias[:, None]
    v = torch.einsum("te,gde->gtd", x, weights.value) + weights.value_bias[:, None]
    k = apply_rotary(k, cos, sin)
    future = torch.ones(tokens, tokens, dtype=torch.bool, device=x.device).triu_(1)
    result = [x.new_zeros(tokens, 2 * heads + kv_heads, d) for _ in gradients]
    for h in head_groups(heads, x.device):
        g = h // weights.group
        # [..., tokens, d]
        q = of_queries @ weights.query[h].mT + weights.query_bias[h][..., None, :]
        turned = apply_rotary(q, cos, sin)
        scores = (turned @ k[g].mT).mul_(weights.scale).masked_fill_(future, float("-inf"))
        p = scores.softmax(-1)  # [..., queries, keys]
        for gamma, at_output in zip(result, gradients, strict=True):
            R = at_output @ weights.output[h]  # [..., queries, d]
            of_scores = R @ v[g].mT
            of_scores -= (p * of_scores).sum(-1, keepdim=True)
            of_scores *= p
            of_scores *= weights.scale
            plain, rotated = of_scores.mT @ q, of_scores.mT @ turned  # [..., keys, d]
            _put(gamma, h, plain)
            # The opposite angle turns by key position back.
            _put(gamma, heads + h, apply_rotary(rotated, cos, -sin))
            gamma.index_add_(1, 2 * heads + _numbers(g, x), _by_token(p.mT @ R))
    return result


def _put(gamma: Tensor, place: int | Tensor, values: Tensor) -> None:
    gamma[:, _numbers(place, gamma)] = _by_token(values)


def _numbers(index: int | Tensor, like: Tensor) -> Tensor:
    return torch.as_tensor(index, device=like.device).reshape(-1)


def _by_token(values: Tensor) -> Tensor:
    """[tokens, d] or [heads, tokens, d] -> [tokens, heads, d]"""
    return values.reshape(-1, *values.shape[-2:]).transpose(0, 1)
