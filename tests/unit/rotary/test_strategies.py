"""Every choice of rotary components against formulations that share no code with it."""

import itertools

import pytest
import torch

from conversion.calibration.statistics import as_pairs
from conversion.errors import RecipeError
from conversion.rotary import ROTARY


@pytest.mark.parametrize("strategy", ROTARY)
@pytest.mark.parametrize("rope", [0, 16, 32, "all"])
def test_scores_split_into_rotary_and_unrotated_parts(measured, strategy, rope):
    """At distance zero nothing is rotated: both parts together are the original score."""
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
def test_kept_components_rotate_as_the_original_does(measured, strategy):
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


def test_two_norm_keeps_as_many_pairs_in_every_head(measured):
    weights, statistics, _ = measured
    kv_heads = weights.key.shape[0]
    if kv_heads > 1:
        with pytest.raises(RecipeError, match=f"multiple of {2 * kv_heads}"):
            ROTARY["2-norm"](weights, statistics, 2 * kv_heads + 2)
