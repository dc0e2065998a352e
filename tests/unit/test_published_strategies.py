"""Published conversions against formulations that share no code with them."""

from dataclasses import replace

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from conversion.assemble import assemble
from conversion.calibration.statistics import as_pairs, attention_weights, layer_statistics
from conversion.errors import RecipeError
from conversion.latent import LATENT
from conversion.latent.balanced_pca import balance
from conversion.latent.factors import latent_target
from conversion.rotary import ROTARY
from conversion.rotary.rorope import FOLDS, rorope, rotary_error
from tests.tiny import VARIANTS, tiny_llama

PER_HEAD = ["2-norm", "high", "low", "uniform"]


def measure(variant, **changes):
    model = tiny_llama(variant, **changes)
    model.requires_grad_(False)
    attention = model.model.layers[0].self_attn
    weights = attention_weights(attention, model.config, LlamaRotaryEmbedding(model.config))
    torch.manual_seed(3)
    # A mean far from zero, so that centring would show.
    inputs = torch.randn(3, 40, 64) + torch.linspace(-1, 1, 64)
    return weights, layer_statistics(weights, inputs), inputs


@pytest.fixture(params=VARIANTS)
def measured(request):
    return measure(request.param)


def rotation(inv_freq, distance):
    """Real matrix of a turn of all pairs, halves layout  # [2 * pairs, 2 * pairs]"""
    cos, sin = (inv_freq * distance).cos(), (inv_freq * distance).sin()
    return torch.cat(
        (
            torch.cat((cos.diag(), -sin.diag()), 1),
            torch.cat((sin.diag(), cos.diag()), 1),
        )
    )


def converted_outputs(tensors, x, weights, rank):
    heads, d, _ = weights.query.shape
    tensors = {name: tensor.double() for name, tensor in tensors.items()}
    rope = 2 * len(tensors["rope_inv_freq"])
    q = x @ tensors["q_proj.weight"].T + tensors.get("q_proj.bias", 0)
    q_nope, q_rope = q.view(len(x), heads, d + rope).split((d, rope), -1)
    cached = x @ tensors["kv_a_proj_with_mqa.weight"].T
    cached = cached + tensors.get("kv_a_proj_with_mqa.bias", 0)
    latent, k_rope = cached.split((rank, rope), -1)
    up = (latent @ tensors["kv_b_proj.weight"].T).view(len(x), heads, 2 * d)
    k_nope, v = up.split((d, d), -1)
    turned = [rotation(tensors["rope_inv_freq"], m) for m in range(len(x))]
    q_rope = torch.stack([q_rope[m] @ turned[m].T for m in range(len(x))])
    k_rope = torch.stack([k_rope[m] @ turned[m].T for m in range(len(x))])
    scores = torch.einsum("mhd,nhd->hmn", q_nope, k_nope)
    scores = scores + torch.einsum("mhr,nr->hmn", q_rope, k_rope)
    return outputs(scores, v, weights, tensors["o_proj.weight"], tensors["o_proj.bias"])


def original_outputs(x, weights):
    def project(weight, bias, count):
        y = torch.einsum("te,gde->tgd", x, weight.double()) + bias.double()
        return y.repeat_interleave(count, 1)

    heads = len(weights.query)
    turned = [rotation(weights.inv_freq.double(), m) for m in range(len(x))]
    q = project(weights.query, weights.query_bias, 1)
    k = project(weights.key, weights.key_bias, weights.group)
    v = project(weights.value, weights.value_bias, weights.group)
    q = torch.stack([q[m] @ turned[m].T for m in range(len(x))])
    k = torch.stack([k[m] @ turned[m].T for m in range(len(x))])
    o = weights.output.double().permute(1, 0, 2).reshape(-1, heads * q.shape[-1])
    scores = torch.einsum("mhd,nhd->hmn", q, k)
    return outputs(scores, v, weights, o, weights.output_bias.double())


def outputs(scores, v, weights, o, bias):
    future = torch.ones(scores.shape[1:], dtype=torch.bool).triu(1)
    scores = (scores * weights.scale).masked_fill(future, float("-inf"))
    attended = torch.einsum("hmn,nhd->mhd", scores.softmax(-1), v)
    return scores, attended.flatten(1) @ o.T + bias


@pytest.mark.parametrize("latent", LATENT)
@pytest.mark.parametrize("rotary", ROTARY)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_at_full_width_any_pair_is_the_original_attention(variant, bias, rotary, latent):
    weights, statistics, inputs = measure(variant, attention_bias=bias)
    kv_heads, d, _ = weights.key.shape
    selection = ROTARY[rotary](weights, statistics, kv_heads * d)
    target = latent_target(weights, statistics, selection, key_weight=0.5)
    factors = LATENT[latent](target, kv_heads * d)
    tensors = assemble(weights, statistics, selection, factors, bias)
    x = inputs[0].double()
    scores, output = converted_outputs(tensors, x, weights, kv_heads * d)
    expected_scores, expected = original_outputs(x, weights)
    # Tensors are stored in float32: 64 products of numbers up to 10, rounded at 1e-7.
    torch.testing.assert_close(scores, expected_scores, atol=2e-4, rtol=0)
    torch.testing.assert_close(output, expected, atol=2e-4, rtol=0)


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
    # What left RoPE is what was not kept: rows of the identity.
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
    weights, _, inputs = measured
    weights.inv_freq.copy_(10000.0 ** (-torch.arange(8) / 8 * spread))
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
