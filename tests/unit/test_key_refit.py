"""The refit of keys against one least squares over all pairs of queries and keys."""

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from conversion import key_refit
from conversion.calibration.statistics import as_pairs, attention_weights, layer_statistics
from conversion.key_refit import LEAST, RIDGE, KeyRefit
from conversion.latent import LATENT
from conversion.latent.factors import latent_target
from conversion.rotary import ROTARY
from tests.tiny import VARIANTS, tiny_llama

TOKENS, RANK = 20, 10


@pytest.fixture(params=VARIANTS)
def layer(request):
    model = tiny_llama(request.param, attention_bias=True)
    model.requires_grad_(False)
    weights = attention_weights(
        model.model.layers[0].self_attn, model.config, LlamaRotaryEmbedding(model.config)
    )
    torch.manual_seed(3)
    original = torch.randn(3, TOKENS, 64)
    return weights, layer_statistics(weights, original), original


def parts(weights, statistics, rope):
    selection = ROTARY["calibrated"](weights, statistics, rope)
    target = latent_target(weights, statistics, selection, key_weight=1)
    return selection, LATENT["calibrated"](target, RANK)


def turned(pairs, distance, inv_freq):
    """Complex pairs at a distance ``n - m``, as real parts, then imaginary parts"""
    z = pairs * torch.polar(torch.ones_like(inv_freq), distance * inv_freq)
    return torch.cat((z.real, z.imag), dim=-1)


@pytest.mark.parametrize("rope", [0, 4])
def test_it_is_one_ridge_regression(layer, monkeypatch, rope):
    weights, statistics, original = layer
    converted = original + 0.3 * torch.randn_like(original)
    selection, factors = parts(weights, statistics, rope)
    monkeypatch.setattr(key_refit, "QUERIES", TOKENS)
    monkeypatch.setattr(key_refit, "LEAST_ATTENTION", 0)
    refit = KeyRefit(weights, selection, factors)
    for x, y in zip(original, converted, strict=True):
        refit.add(x, y)
    found = refit.solve()

    heads, d, hidden = weights.query.shape
    theta, phi = weights.inv_freq.double(), selection.inv_freq
    for h in range(heads):
        g = h // weights.group
        rows, targets = [], []
        for x, y in zip(original.double(), converted.double(), strict=True):
            q = x @ weights.query[h].double().T + weights.query_bias[h].double()
            k = as_pairs(x @ weights.key[g].double().T + weights.key_bias[g].double())
            flat = torch.einsum("te,gde->tgd", y, weights.key.double()) + weights.key_bias.double()
            rotary = flat.flatten(1) @ selection.key_rope.T
            latent = y @ factors.down.T
            for m in range(TOKENS):
                keys = torch.stack([turned(k[n], n - m, theta) for n in range(m + 1)])
                cached = torch.cat((rotary.new_zeros(m + 1, rope), latent[: m + 1]), dim=1)
                for n in range(m + 1 if rope else 0):
                    cached[n, :rope] = turned(as_pairs(rotary[n]), n - m, phi)
                a = (weights.scale * keys @ q[m]).softmax(0)
                root = a.sqrt()[:, None]
                rows.append(root * (cached - a @ cached))
                targets.append(root * (keys - a @ keys))
        P, K = torch.cat(rows), torch.cat(targets)
        before = torch.cat(
            (
                selection.query_rope[h].T,
                selection.query_nope[h].T @ factors.key_up[g * d : (g + 1) * d],
            ),
            dim=1,
        )
        power = P.square().sum(0)
        pull = (RIDGE * power + LEAST * power.mean()).sqrt()
        S = torch.linalg.lstsq(
            torch.cat((P, torch.diag(pull))), torch.cat((K, before.T * pull[:, None]))
        ).solution.T
        W, b = weights.query[h].double(), weights.query_bias[h].double()
        query = found["q_proj.weight"].view(heads, d + rope, hidden)[h]
        up = found["kv_b_proj.weight"].view(heads, 2 * d, RANK)[h]
        # The product sums in float32.
        close = {"atol": 1e-3, "rtol": 1e-3, "check_dtype": False}
        torch.testing.assert_close(query[:d], weights.query[h], **close)
        torch.testing.assert_close(query[d:], S[:, :rope].T @ W, **close)
        torch.testing.assert_close(
            found["q_proj.bias"].view(heads, -1)[h, d:], S[:, :rope].T @ b, **close
        )
        torch.testing.assert_close(up[:d], S[:, rope:], **close)
        torch.testing.assert_close(up[d:], factors.value_up[g * d : (g + 1) * d], **close)


def test_a_few_queries_of_a_long_window_are_enough_and_repeatable(layer):
    weights, statistics, original = layer
    selection, factors = parts(weights, statistics, 4)
    torch.manual_seed(5)
    x = torch.randn(200, 64)
    results = []
    for _ in range(2):
        refit = KeyRefit(weights, selection, factors)
        refit.add(x, x)
        # A window shorter than the queries it is asked for.
        refit.add(original[0][:3], original[0][:3])
        results.append(refit.solve())
    for name, tensor in results[0].items():
        assert torch.equal(tensor, results[1][name])
        assert bool(tensor.isfinite().all())
