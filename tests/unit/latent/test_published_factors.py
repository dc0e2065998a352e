"""Published low-rank factors against formulations that share no code with them."""

from dataclasses import replace

import pytest
import torch

from conversion.latent import LATENT
from conversion.latent.balanced_pca import balance
from conversion.latent.factors import latent_target
from conversion.rotary import ROTARY
from tests.support.measured import measure


@pytest.fixture
def target(measured):
    weights, statistics, inputs = measured
    selection = ROTARY["rorope"](weights, statistics, 8)
    return latent_target(weights, statistics, selection, key_weight=0.5), inputs.double()


def test_svd_split_is_the_best_low_rank_weight_of_each(target):
    target, _ = target
    factors = LATENT["svd-split"](target, 10)
    for weight, up in ((target.key, factors.key_up), (target.value, factors.value_up)):
        error = float((weight - up @ factors.down).square().sum())
        assert error == pytest.approx(float(torch.linalg.svdvals(weight)[5:].square().sum()))
    shared = (factors.key_up != 0).any(0) & (factors.value_up != 0).any(0)
    assert not shared.any()


def test_svd_split_gives_away_rank_it_has_no_use_for(measured):
    weights, statistics, _ = measured
    kv_heads, d, _ = weights.key.shape
    selection = ROTARY["high"](weights, statistics, kv_heads * (d - 2))
    target = latent_target(weights, statistics, selection, key_weight=0.5)
    keys = 2 * kv_heads
    factors = LATENT["svd-split"](target, 4 * keys)
    assert int((factors.key_up != 0).any(0).sum()) == keys
    tail = torch.linalg.svdvals(target.value)[3 * keys :].square().sum()
    error = (target.value - factors.value_up @ factors.down).square().sum()
    torch.testing.assert_close(error, tail)

    few_values = replace(target, key=target.value, value=target.key)
    factors = LATENT["svd-split"](few_values, 4 * keys)
    assert int((factors.value_up != 0).any(0).sum()) == keys
    error = (few_values.key - factors.key_up @ factors.down).square().sum()
    torch.testing.assert_close(error, tail)


def test_whitened_has_the_least_error_of_the_activations(target):
    target, inputs = target
    x = inputs.flatten(0, 1)
    C = x.T @ x / len(x)
    shrunk = C + 0.1 * C.diagonal().mean() * torch.eye(len(C))
    W = torch.cat((target.key, target.value))
    factors = LATENT["whitened"](target, 10)
    E = W - torch.cat((factors.key_up, factors.value_up)) @ factors.down
    # Another square root of the same matrix has the same singular values.
    singular = torch.linalg.svdvals(W @ torch.linalg.cholesky(shrunk))
    error = float(torch.einsum("ij,jk,ik->", E, shrunk, E))
    assert error == pytest.approx(float(singular[10:].square().sum()), rel=1e-6)
    assert not factors.centred


def test_balanced_pca_is_pca_of_activations_of_one_size(target):
    target, inputs = target
    x = inputs.flatten(0, 1)
    k, v = x @ target.key.T, x @ target.value.T
    alpha = float(k.square().sum(1).mean().sqrt() / v.square().sum(1).mean().sqrt())
    assert alpha != pytest.approx(1, rel=0.05)
    assert balance(target) == pytest.approx(alpha, rel=1e-6)
    factors = LATENT["balanced-pca"](target, 10)
    c = x @ factors.down.T
    error = torch.cat(((k - c @ factors.key_up.T) / alpha, v - c @ factors.value_up.T), 1)
    singular = torch.linalg.svdvals(torch.cat((k / alpha, v), 1))
    assert float(error.square().sum()) == pytest.approx(float(singular[10:].square().sum()))
    assert not factors.centred


def test_balanced_pca_does_not_blow_up_keys_that_all_stayed_rotary(measured):
    weights, statistics, _ = measured
    kv_heads, d, _ = weights.key.shape
    selection = ROTARY["rorope"](weights, statistics, kv_heads * d)
    target = latent_target(weights, statistics, selection, key_weight=0.5)
    assert balance(target) == 1


@pytest.mark.parametrize("latent", LATENT)
def test_a_latent_is_as_wide_as_asked_for(latent):
    """MHA has 128 key and value dimensions and 64 inputs here."""
    weights, statistics, _ = measure("mha")
    selection = ROTARY["high"](weights, statistics, 8)
    target = latent_target(weights, statistics, selection, key_weight=0.5)
    factors = LATENT[latent](target, 100)
    assert factors.down.shape == (100, 64)
    assert factors.key_up.shape == factors.value_up.shape == (64, 100)
