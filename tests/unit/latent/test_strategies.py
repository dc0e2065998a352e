"""The conversion mathematics against formulations that share no code with it."""

import itertools

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from conversion.calibration.statistics import as_pairs, layer_statistics
from conversion.errors import RecipeError
from conversion.families.llama import LLAMA
from conversion.latent import LATENT
from conversion.latent.factors import latent_target
from conversion.rotary import ROTARY
from tests.support.tiny import VARIANTS, tiny_llama


@pytest.fixture(params=VARIANTS)
def measured(request):
    model = tiny_llama(request.param)
    rotary = LlamaRotaryEmbedding(model.config)
    model.requires_grad_(False)
    weights = LLAMA.attention_weights(model.model.layers[0].self_attn, model.config, rotary)
    torch.manual_seed(3)
    inputs = torch.randn(3, 40, 64)
    return weights, layer_statistics(weights, inputs), inputs


def test_statistics_are_what_their_names_say(measured):
    weights, statistics, inputs = measured
    heads, d, _ = weights.query.shape
    kv_heads = weights.key.shape[0]
    received_mean = torch.zeros(64, dtype=torch.float64)
    rho, gamma = 0, 0
    for x in inputs.double():
        tokens = len(x)
        distance = torch.arange(tokens)[:, None] - torch.arange(tokens)
        total = torch.zeros(tokens, dtype=torch.float64)
        per_head = {"rho": [], "gamma": []}
        for h in range(heads):
            g = h // (heads // kv_heads)
            u = as_pairs(x @ weights.query[h].double().T)
            z = as_pairs(x @ weights.key[g].double().T)
            turn = torch.polar(
                torch.ones(tokens, tokens, d // 2, dtype=torch.float64),
                distance[..., None] * weights.inv_freq.double(),
            )
            scores = (u[:, None] * z.conj()[None] * turn).real.sum(-1) * weights.scale
            a = scores.masked_fill(distance < 0, float("-inf")).softmax(-1)
            total += a.sum(0)
            per_head["rho"].append((a[..., None] * turn).sum(1).mean(0))
            v = x @ weights.value[g].double().T @ weights.output[h].double().T
            spread = (v[None] - (a @ v)[:, None]).square().sum(-1)
            per_head["gamma"].append((a * spread).sum(1).mean())
        received_mean += total @ x / total.sum()
        rho, gamma = rho + torch.stack(per_head["rho"]), gamma + torch.stack(per_head["gamma"])
    # The product computes in float32.
    close = {"atol": 1e-5, "rtol": 1e-4}
    torch.testing.assert_close(statistics.input_mean, received_mean / 3, **close)
    tokens = inputs.double().flatten(0, 1)
    torch.testing.assert_close(statistics.token_moment, tokens.T @ tokens / len(tokens), **close)
    torch.testing.assert_close(statistics.rho, rho / 3, **close)
    torch.testing.assert_close(statistics.gamma, gamma / 3, **close)


@pytest.mark.parametrize("strategy", ROTARY)
@pytest.mark.parametrize("rope", [0, 16, 32, "all"])
def test_scores_split_into_rotary_and_unrotated_parts(measured, strategy, rope):
    """At distance zero nothing turns: both parts together are the original score."""
    weights, statistics, _ = measured
    heads, d, _ = weights.query.shape
    kv_heads = weights.key.shape[0]
    rope = kv_heads * d if rope == "all" else min(rope, kv_heads * d)
    selection = ROTARY[strategy](weights, statistics, rope)
    assert selection.key_rope.shape == (rope, kv_heads * d)

    torch.manual_seed(1)
    q, k = torch.randn(heads, d).double(), torch.randn(kv_heads * d).double()
    rotary = torch.einsum("hrd,hd->hr", selection.query_rope, q) @ (selection.key_rope @ k)
    rest = (selection.key_nope @ k).view(kv_heads, d).repeat_interleave(heads // kv_heads, 0)
    if strategy in ("calibrated", "mean-rotation"):
        # Without what stands in for the lost rotation.
        unrotated = (q * rest).sum(-1)
    else:
        unrotated = (torch.einsum("hed,hd->he", selection.query_nope, q) * rest).sum(-1)
    original = (q * k.view(kv_heads, d).repeat_interleave(heads // kv_heads, 0)).sum(-1)
    torch.testing.assert_close(rotary + unrotated, original)
    if rope == kv_heads * d:
        torch.testing.assert_close(rest, torch.zeros_like(rest), atol=1e-10, rtol=0)


@pytest.mark.parametrize("strategy", ROTARY)
def test_kept_components_turn_as_the_original_does(measured, strategy):
    weights, statistics, _ = measured
    heads, d, _ = weights.query.shape
    kv_heads = weights.key.shape[0]
    selection = ROTARY[strategy](weights, statistics, kv_heads * d)
    torch.manual_seed(2)
    q, k = torch.randn(heads, d).double(), torch.randn(kv_heads * d).double()
    distance = 17
    turn = torch.polar(torch.ones(d // 2).double(), distance * weights.inv_freq.double())
    z = as_pairs(k.view(kv_heads, d)).repeat_interleave(heads // kv_heads, 0)
    original = (as_pairs(q) * turn * z.conj()).real.sum(-1)
    kept = torch.polar(torch.ones_like(selection.inv_freq), distance * selection.inv_freq)
    query = as_pairs(torch.einsum("hrd,hd->hr", selection.query_rope, q))
    key = as_pairs(selection.key_rope @ k)
    torch.testing.assert_close((query * kept * key.conj()).real.sum(-1), original)


def test_mean_rotation_is_folded_into_the_query(measured):
    weights, statistics, _ = measured
    selection = ROTARY["mean-rotation"](weights, statistics, 4)
    torch.manual_seed(1)
    q = torch.randn(weights.query.shape[:2]).double()
    folded = as_pairs(torch.einsum("hed,hd->he", selection.query_nope, q))
    torch.testing.assert_close(folded, as_pairs(q) * statistics.rho)


def test_mean_rotation_removes_what_costs_least(measured):
    """No other choice of as many components of the same decomposition costs less."""
    weights, statistics, _ = measured
    kv_heads, d, _ = weights.key.shape
    costs = []
    for rope in range(0, kv_heads * d + 1, 2):
        selection = ROTARY["mean-rotation"](weights, statistics, rope)
        K = selection.key_nope @ weights.key.double().flatten(0, 1)
        second = statistics.input_covariance + torch.outer(
            statistics.input_mean, statistics.input_mean
        )
        moment = (K @ second @ K.T).diagonal().view(kv_heads, d)
        power = statistics.query_moment.diagonal(dim1=1, dim2=2)
        power = power[:, : d // 2] + power[:, d // 2 :]
        lost = power * (1 - statistics.rho.abs() ** 2)
        key_power = (moment[:, : d // 2] + moment[:, d // 2 :]).repeat_interleave(weights.group, 0)
        costs.append(float((lost * key_power).sum()))
    drops = [before - after for before, after in itertools.pairwise(costs)]
    tolerance = 1e-6 * costs[0]
    assert all(drop >= -tolerance for drop in drops)
    assert all(a >= b - tolerance for a, b in itertools.pairwise(drops))


def test_calibrated_latent_is_the_optimum_of_its_metric(measured):
    weights, statistics, _ = measured
    selection = ROTARY["calibrated"](weights, statistics, 8)
    target = latent_target(weights, statistics, selection, key_weight=0.5)
    metric = target.metric
    W = torch.cat((target.key, target.value))

    def cost(approximation):
        error = W - approximation
        return float(torch.einsum("ij,ik,jl,kl->", metric, error, error, target.covariance))

    rank = 12
    best = LATENT["calibrated"](target, rank)
    up = torch.cat((best.key_up, best.value_up))
    optimum = cost(up @ best.down)
    # Eckart-Young in another form: singular values of M^(1/2) W C^(1/2) by Cholesky factors.
    M = torch.linalg.cholesky(metric + 1e-4 * metric.diagonal().mean() * torch.eye(len(metric)))
    C = torch.linalg.cholesky(target.covariance)
    singular = torch.linalg.svdvals(M.T @ W @ C)
    assert optimum == pytest.approx(float(singular[rank:].square().sum()), rel=1e-3)
    torch.manual_seed(4)
    for factor in (1e-3, 1e-2):
        noise = torch.randn_like(up) * up.abs().mean() * factor
        assert cost((up + noise) @ best.down) > optimum


def test_svd_joint_is_the_best_low_rank_weight(measured):
    weights, statistics, _ = measured
    selection = ROTARY["2-norm"](weights, statistics, 2 * weights.key.shape[0])
    target = latent_target(weights, statistics, selection, key_weight=1)
    factors = LATENT["svd-joint"](target, 10)
    W = torch.cat((target.key, target.value))
    error = W - torch.cat((factors.key_up, factors.value_up)) @ factors.down
    assert float(error.square().sum()) == pytest.approx(
        float(torch.linalg.svdvals(W)[10:].square().sum())
    )


def test_two_norm_keeps_as_many_pairs_in_every_head(measured):
    weights, statistics, _ = measured
    kv_heads = weights.key.shape[0]
    if kv_heads > 1:
        with pytest.raises(RecipeError, match=f"multiple of {2 * kv_heads}"):
            ROTARY["2-norm"](weights, statistics, 2 * kv_heads + 2)
