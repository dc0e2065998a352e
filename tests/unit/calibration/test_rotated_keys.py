"""Keys as queries see them, and what stands in for them, by explicit sums over queries and keys."""

import dataclasses

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from conversion.calibration.rotated_keys import are_small
from conversion.calibration.statistics import as_pairs, layer_statistics
from conversion.families.llama import LLAMA
from conversion.rotary import ROTARY
from conversion.rotary.calibrated import RIDGE
from conversion.text.windows import EVERY
from tests.support.tiny import VARIANTS, tiny_llama
from vllm_mha2mla.rope import apply_rotary

TOKENS = 24


@pytest.fixture(params=VARIANTS)
def measured(request):
    model = tiny_llama(request.param)
    model.requires_grad_(False)
    weights = LLAMA.attention_weights(
        model.model.layers[0].self_attn, model.config, LlamaRotaryEmbedding(model.config)
    )
    torch.manual_seed(3)
    inputs = torch.randn(2 * EVERY, TOKENS, 64)
    return weights, layer_statistics(weights, inputs), inputs


def seen_by_queries(weights, inputs, h):
    """Attention, keys turned as each query meets them, and keys  # [m, n], [m, n, kv d], [n, kv d]

    Of the windows that are probed; float64.
    """
    distance = torch.arange(TOKENS)[None] - torch.arange(TOKENS)[:, None]  # n - m
    angles = distance[..., None] * weights.inv_freq.double()
    for x in inputs[::EVERY].double():
        q = x @ weights.query[h].double().T  # [m, d]
        k = torch.einsum("te,gde->tgd", x, weights.key.double())
        turned = apply_rotary(
            k[None].expand(TOKENS, -1, -1, -1), angles.cos()[:, :, None], angles.sin()[:, :, None]
        )  # [m, n, kv_heads, d]
        scores = torch.einsum("md,mnd->mn", q, turned[:, :, h // weights.group])
        a = (scores * weights.scale).masked_fill(distance > 0, float("-inf")).softmax(-1)
        yield a, turned.flatten(2), k.flatten(1)


def centred(a, x):
    """Less what each query sees on average  # [m, n, .]"""
    return x - torch.einsum("mn,mni->mi", a.to(x.dtype), x)[:, None]


def within(a, x, y):
    """``E_m Cov_n[x, y]`` of what each query sees  # both [m, n, .]"""
    x, y = centred(a, x), centred(a, y)
    return torch.einsum("mn,mni,mnj->ij", a.to(x.dtype), x, y.conj()) / len(a)


def test_moments_are_covariances_within_each_query(measured):
    weights, statistics, inputs = measured
    kv_heads, d, _ = weights.key.shape
    for h in range(len(weights.query)):
        cross, plain, pairs = [], [], []
        for a, turned, k in seen_by_queries(weights, inputs, h):
            every = k[None].expand(TOKENS, -1, -1)
            cross.append(within(a, turned, every))
            plain.append(within(a, every, every))
            z = as_pairs(turned.view(TOKENS, TOKENS, kv_heads, d))
            pairs.append(torch.stack([within(a, z[..., f], z[..., f]) for f in range(d // 2)]))
        # The product computes in float32.
        close = {"atol": 2e-5, "rtol": 1e-3, "check_dtype": False}
        torch.testing.assert_close(statistics.rotated.cross[h], sum(cross) / 2, **close)
        torch.testing.assert_close(statistics.rotated.plain[h], sum(plain) / 2, **close)
        torch.testing.assert_close(statistics.rotated.pairs[h], sum(pairs) / 2, **close)


@pytest.mark.parametrize("rope", [0, 4, 8])
def test_stand_ins_are_the_ridge_regression_of_rotated_keys(measured, rope):
    """Solved as least squares over all pairs of queries and keys, the ridge as rows of its own."""
    weights, statistics, inputs = measured
    d = weights.query.shape[1]
    selection = ROTARY["calibrated"](weights, statistics, rope)
    for h in range(len(weights.query)):
        own = slice(h // weights.group * d, (h // weights.group + 1) * d)
        rows, targets = [], []
        for a, turned, k in seen_by_queries(weights, inputs, h):
            rest = (k @ selection.key_nope.T)[None, :, own].expand(TOKENS, -1, -1)
            seen = (turned @ selection.key_nope.T)[..., own]
            root = (a / (2 * TOKENS)).sqrt()[..., None]
            rows.append((root * centred(a, rest)).flatten(0, 1))
            targets.append((root * centred(a, seen)).flatten(0, 1))
        X, Y = torch.cat(rows), torch.cat(targets)
        pull = (RIDGE * X.square().sum(0).mean()).sqrt()
        X = torch.cat((X, pull * torch.eye(d).double()))
        Y = torch.cat((Y, torch.zeros(d, d).double()))
        expected = torch.linalg.lstsq(X, Y).solution  # T^T
        torch.testing.assert_close(selection.query_nope[h], expected, atol=1e-3, rtol=1e-3)


def score_error(weights, selection, inputs):
    """Squared error of the scores within each query's attention, over all heads."""
    heads, d, _ = weights.query.shape
    pairs = len(selection.inv_freq)
    distance = torch.arange(TOKENS)[:, None] - torch.arange(TOKENS)
    kept = torch.polar(
        torch.ones(TOKENS, TOKENS, pairs).double(), distance[..., None] * selection.inv_freq
    )
    error = 0.0
    for h in range(heads):
        own = slice(h // weights.group * d, (h // weights.group + 1) * d)
        windows = seen_by_queries(weights, inputs, h)
        for x, (a, turned, k) in zip(inputs[::EVERY].double(), windows, strict=True):
            q = x @ weights.query[h].double().T
            true = torch.einsum("md,mnd->mn", q, turned[..., own])
            query, key = as_pairs(q @ selection.query_rope[h].T), as_pairs(k @ selection.key_rope.T)
            found = (query[:, None] * kept * key.conj()[None]).real.sum(-1)
            found += (q @ selection.query_nope[h].T) @ (k @ selection.key_nope.T)[:, own].T
            off = found - true
            error += float((a * (off - (a * off).sum(1, keepdim=True)).square()).sum())
    return error


@pytest.mark.parametrize("rope", [0, 4, 8])
def test_scores_are_closer_than_with_a_mean_rotation(measured, rope):
    """Keys that tell how far away they are: the first token is another than all others."""
    weights, _, inputs = measured
    inputs = inputs.clone()
    inputs[:, 0] = 3 * inputs[0, 0]
    statistics = layer_statistics(weights, inputs)
    errors = {
        name: score_error(weights, ROTARY[name](weights, statistics, rope), inputs)
        for name in ("calibrated", "mean-rotation")
    }
    assert errors["calibrated"] < 0.95 * errors["mean-rotation"]


def test_nothing_is_lost_where_everything_turns(measured):
    weights, statistics, inputs = measured
    selection = ROTARY["calibrated"](weights, statistics, weights.key.shape[0] * 16)
    nothing_kept = score_error(weights, ROTARY["mean-rotation"](weights, statistics, 0), inputs)
    assert score_error(weights, selection, inputs) < 1e-10 * nothing_kept
    assert bool(selection.query_nope.isfinite().all())


def test_a_layer_with_too_many_kv_heads_takes_the_mean_rotation():
    assert are_small(heads=32, kv_heads=8, d=128, hidden=4096)  # Llama-3-8B
    assert are_small(heads=9, kv_heads=3, d=64, hidden=576)  # SmolLM2-135M
    assert not are_small(heads=32, kv_heads=32, d=128, hidden=4096)  # Llama-2-7B
    model = tiny_llama("mha", num_attention_heads=8, num_key_value_heads=8, head_dim=16)
    model.requires_grad_(False)
    weights = LLAMA.attention_weights(
        model.model.layers[0].self_attn, model.config, LlamaRotaryEmbedding(model.config)
    )
    torch.manual_seed(3)
    statistics = layer_statistics(weights, torch.randn(2, 12, 64))
    assert statistics.rotated is None
    found = ROTARY["calibrated"](weights, statistics, 8)
    expected = ROTARY["mean-rotation"](weights, statistics, 8)
    for field in dataclasses.fields(found):
        assert torch.equal(getattr(found, field.name), getattr(expected, field.name))
