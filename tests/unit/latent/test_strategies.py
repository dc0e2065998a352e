"""Low-rank factors against optima found in another way."""

import pytest
import torch

from conversion.latent import LATENT
from conversion.latent.factors import latent_target
from conversion.rotary import ROTARY


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
