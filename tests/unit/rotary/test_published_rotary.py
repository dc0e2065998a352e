"""Published partial RoPE against formulations that share no code with it."""

from dataclasses import replace

import pytest
import torch

from conversion.calibration.statistics import as_pairs, layer_statistics
from conversion.errors import RecipeError
from conversion.rotary import ROTARY
from conversion.rotary.rorope import FOLDS, rorope, rotary_error
from tests.support.measured import measure, rotation
from tests.support.tiny import VARIANTS

PER_HEAD = ["2-norm", "high", "low", "uniform"]


def test_attention_by_distance_gives_the_mean_rotation(measured):
    weights, statistics, inputs = measured
    D = torch.arange(inputs.shape[1])
    turn = torch.polar(torch.ones(()).double(), D[:, None] * weights.inv_freq.double())
    # The product computes in float32.
    rho = statistics.distance.to(turn.dtype) @ turn
    torch.testing.assert_close(rho, statistics.rho, atol=1e-5, rtol=0)
    mean = inputs.double().mean((0, 1))
    torch.testing.assert_close(statistics.token_mean, mean)


@pytest.mark.parametrize(
    ("strategy", "per_head", "pairs"),
    [
        ("high", 3, [0, 1, 2]),
        ("low", 3, [5, 6, 7]),
        ("uniform", 2, [0, 4]),
        ("uniform", 3, [0, 2, 5]),
        ("uniform", 8, list(range(8))),
        ("high", 0, []),
        ("uniform", 0, []),
    ],
)
def test_every_head_keeps_the_pairs_of_the_paper(measured, strategy, per_head, pairs):
    weights, statistics, _ = measured
    kv_heads, d, _ = weights.key.shape
    selection = ROTARY[strategy](weights, statistics, 2 * kv_heads * per_head)
    inv_freq = 10000.0 ** (-torch.tensor(pairs * kv_heads).double() / 8)
    torch.testing.assert_close(selection.inv_freq, inv_freq, atol=0, rtol=1e-6)
    # The components without RoPE are the others: rows of the identity.
    lost = selection.key_nope.diagonal().view(kv_heads, 2, d // 2)
    expected = torch.ones(d // 2).double()
    expected[pairs] = 0
    assert torch.equal(lost, expected.expand_as(lost))


def test_a_query_reads_only_its_own_heads_rotary_part():
    weights, statistics, _ = measure("gqa")
    selection = ROTARY["high"](weights, statistics, 8)
    read = selection.query_rope.abs().sum(-1) > 0  # [heads, rope]
    first, second = [True, True, False, False] * 2, [False, False, True, True] * 2
    assert read.tolist() == [first, first, second, second]


@pytest.mark.parametrize("fold", FOLDS)
@pytest.mark.parametrize("rope", [2, 8, 16])
def test_rorope_keeps_orthonormal_components(measured, fold, rope):
    weights, statistics, _ = measured
    groups = 8 // fold
    if rope % (2 * groups):
        with pytest.raises(RecipeError, match=f"rope_dim {rope}: .* multiple of {2 * groups}, or"):
            rorope(weights, statistics, rope, fold)
        return
    P = rorope(weights, statistics, rope, fold).key_rope
    torch.testing.assert_close(P @ P.T, torch.eye(rope).double())


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_rorope_keeps_the_most_key_energy_of_every_frequency(variant, bias):
    """The paper's construction from activations: singular values of stacked parts."""
    weights, statistics, inputs = measure(variant, attention_bias=bias)
    kv_heads, d, _ = weights.key.shape
    x = inputs.double().flatten(0, 1)
    k = torch.einsum("te,gde->tgd", x, weights.key.double()) + weights.key_bias.double()
    z = as_pairs(k)  # [tokens, kv_heads, d/2]
    kept = max(1, kv_heads // 2)
    P = rorope(weights, statistics, d * kept, fold=1).key_rope
    components = as_pairs(k.flatten(1) @ P.T)  # [tokens, d/2 * kept]
    energy = components.abs().square().sum(0).view(d // 2, kept)
    for f in range(d // 2):
        singular = torch.linalg.svdvals(torch.cat((z[:, :, f].real, z[:, :, f].imag)))
        torch.testing.assert_close(energy[f], singular[:kept].square())


@pytest.mark.parametrize(
    ("fold", "rope", "which"),
    [(1, 16, range(8)), (2, 8, [0, 2, 4, 6]), (4, 8, [0, 2, 4, 6]), (8, 6, [0, 2, 5])],
)
def test_folded_components_turn_with_a_frequency_of_their_group(measured, fold, rope, which):
    weights, statistics, _ = measured
    selection = rorope(weights, statistics, rope, fold)
    torch.testing.assert_close(selection.inv_freq, weights.inv_freq.double()[list(which)])
    # A group's components read that group's pairs only.
    read = as_pairs(selection.key_rope[: rope // 2]).abs().view(rope // 2, -1, 8).sum(1) > 0
    kept = rope // 2 * fold // 8
    for row in range(rope // 2):
        start = row // kept * fold
        assert read[row].nonzero().flatten().tolist() == list(range(start, start + fold))


def expected_error(weights, statistics, inputs, rope, fold):
    """``E (score - converted score)^2`` from the whole operators, one distance at a time."""
    heads, d, _ = weights.query.shape
    kv_heads, groups = weights.key.shape[0], d // 2 // fold
    x = inputs.double().flatten(0, 1)
    k = torch.einsum("te,gde->tgd", x, weights.key.double()).flatten(1)
    moment = (k.T @ k / len(k)).view(kv_heads, 2, groups, fold, kv_heads, 2, groups, fold)
    # Keys as rotary_error takes them: real and imaginary parts alike, groups uncorrelated.
    alike = torch.zeros_like(moment)
    for b in range(groups):
        mean = (moment[:, 0, b, :, :, 0, b] + moment[:, 1, b, :, :, 1, b]) / 2
        alike[:, 0, b, :, :, 0, b] = alike[:, 1, b, :, :, 1, b] = mean
    alike = alike.reshape(kv_heads * d, kv_heads * d)
    selection = rorope(weights, statistics, rope, fold)
    error = 0.0
    for D in range(inputs.shape[1]):
        turn = rotation(weights.inv_freq.double(), D)
        kept = rotation(selection.inv_freq, D)
        for h in range(heads):
            g = h // weights.group
            A = selection.query_rope[h].T @ kept @ selection.key_rope
            A = A + selection.key_nope[g * d : (g + 1) * d]
            A[:, g * d : (g + 1) * d] -= turn
            second = statistics.query_moment[h].diagonal()
            power = ((second[: d // 2] + second[d // 2 :]) / 2).repeat(2)
            cost = torch.einsum("i,ij,jk,ik->", power, A, alike, A)
            error += float(statistics.distance[h, D] * cost)
    return error


@pytest.mark.parametrize("fold", FOLDS)
def test_rotary_error_is_that_of_the_converted_scores(measured, fold):
    weights, statistics, inputs = measured
    found = rotary_error(weights, statistics, 16, fold)
    assert found == pytest.approx(expected_error(weights, statistics, inputs, 16, fold), rel=1e-6)
    if fold == 1 and len(weights.key) == 1:
        assert found == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("spread", [1.0, 0.05])
def test_rorope_takes_the_fold_of_least_error(measured, spread):
    """Frequencies close to each other make wide folds free, others make them costly."""
    shared, _, inputs = measured
    weights = replace(shared, inv_freq=10000.0 ** (-torch.arange(8) / 8 * spread))
    statistics = layer_statistics(weights, inputs)
    errors = {M: expected_error(weights, statistics, inputs, 16, M) for M in FOLDS}
    best = min(FOLDS, key=lambda M: errors[M])
    chosen = rorope(weights, statistics, 16)
    assert torch.equal(chosen.key_rope, rorope(weights, statistics, 16, best).key_rope)
    others = {M for M in FOLDS if errors[M] > 1.01 * errors[best]}
    assert others
    for M in others:
        assert not torch.equal(chosen.key_rope, rorope(weights, statistics, 16, M).key_rope)


@pytest.mark.parametrize("strategy", PER_HEAD)
def test_a_head_cannot_keep_part_of_a_pair(strategy):
    weights, statistics, _ = measure("mha")
    with pytest.raises(RecipeError, match=f"rope_dim 12: {strategy} .* multiple of 8"):
        ROTARY[strategy](weights, statistics, 12)


def test_rorope_without_a_possible_fold_names_the_step():
    # 6 pairs per head: folds 1 and 2, so 3 groups at least.
    weights, statistics, _ = measure("gqa", hidden_size=64, head_dim=12)
    with pytest.raises(RecipeError, match=r"rope_dim 8: rorope .* multiple of 6"):
        rorope(weights, statistics, 8)
    assert ROTARY["rorope"].step(2, 12) == 6
