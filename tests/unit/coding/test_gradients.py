"""The metric of rows against gradients that autograd takes through the converted attention."""

import pytest
import torch

from conversion.coding.gradients import key_value_gradients
from conversion.coding.row_maps import RowMaps
from conversion.families.llama import LLAMA
from tests.support.tiny import tiny_llama
from vllm_mha2mla.rope import apply_rotary, rotary_angles


def attend(weights, maps, x, rows):
    """The attention over given rows, head by head  # [tokens, hidden]"""
    tokens, rank = len(x), maps.up.shape[2]
    half = maps.query_rope.shape[1] // 2
    frequencies = weights.inv_freq.repeat(len(weights.key))[:half]
    rope = rotary_angles(torch.arange(tokens), frequencies)
    future = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
    u = apply_rotary(rows[:, rank:], *rope)
    output = weights.output_bias
    for h in range(len(weights.query)):
        w_uk, w_uv = maps.up[h // weights.group].chunk(2)
        q = x @ weights.query[h].T + weights.query_bias[h]
        scores = (q @ maps.query_nope[h].T) @ (rows[:, :rank] @ w_uk.T).T
        scores = scores + apply_rotary(q @ maps.query_rope[h].T, *rope) @ u.T
        p = (weights.scale * scores).masked_fill(future, float("-inf")).softmax(-1)
        output = output + p @ (rows[:, :rank] @ w_uv.T) @ weights.output[h].T
    return output


@pytest.mark.parametrize("variant", ["gqa", "mqa", "mha"])
@pytest.mark.parametrize("attention_bias", [False, True])
def test_metric_is_that_of_autograd_where_nothing_is_lost(variant, attention_bias):
    """Rows of all keys, which turn, and all values in another basis: the original exactly."""
    model = tiny_llama(variant, attention_bias=attention_bias)
    layer = model.model.layers[0]
    weights = LLAMA.attention_weights(layer.self_attn, model.config, model.model.rotary_emb)
    kv_heads, d, hidden = weights.key.shape
    torch.manual_seed(1)
    basis = torch.linalg.qr(torch.randn(kv_heads * d, kv_heads * d))[0]
    # Keys: first halves of all pairs, then second halves.
    by_half = torch.arange(kv_heads * d).view(kv_heads, 2, d // 2).transpose(0, 1).flatten()
    select = torch.eye(kv_heads * d)[by_half].view(kv_heads * d, kv_heads, d).transpose(0, 1)
    maps = RowMaps(
        down=torch.cat((basis @ weights.value.flatten(0, 1), weights.key.flatten(0, 1)[by_half])),
        bias=torch.cat((basis @ weights.value_bias.flatten(), weights.key_bias.flatten()[by_half])),
        up=torch.cat((torch.zeros(kv_heads, d, kv_heads * d), basis.T.view(kv_heads, d, -1)), 1),
        query_nope=torch.zeros(len(weights.query), d, d),
        query_rope=select.repeat_interleave(weights.group, dim=0),
    )
    inputs = list(torch.randn(2, 12, hidden))
    labels = [list(torch.randn(2, 12, hidden)) for _ in inputs]
    expected, samples = 0, 0
    for x, gradients in zip(inputs, labels, strict=True):
        rows = (x @ maps.down.T + maps.bias).requires_grad_()
        output = attend(weights, maps, x, rows)
        position = torch.arange(len(x))[None]
        angles = model.model.rotary_emb(x[None], position)
        own = layer.self_attn(x[None], position_embeddings=angles, attention_mask=None)[0][0]
        # The formulation above is the layer's.
        torch.testing.assert_close(output, own, atol=1e-4, rtol=1e-4)
        for g in gradients:
            (at_rows,) = torch.autograd.grad(output, rows, g, retain_graph=True)
            expected = expected + at_rows[1:].T @ at_rows[1:]
            samples += len(at_rows) - 1
    found = maps.metric(key_value_gradients(weights, inputs, labels))
    # Float32 sums of a few dozen products of numbers of order one.
    scale = float((expected / samples).diagonal().mean())
    torch.testing.assert_close(found, expected / samples, rtol=1e-3, atol=1e-4 * scale)
