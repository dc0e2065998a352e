"""Query compression against the metric computed token by token."""

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from conversion.calibration.statistics import layer_statistics
from conversion.families.llama import LLAMA
from conversion.latent import LATENT
from conversion.latent.factors import latent_target
from conversion.layers.assemble import assemble
from conversion.layers.query import compress_query
from conversion.rotary import ROTARY
from tests.support.tiny import VARIANTS, tiny_llama
from vllm_mha2mla.config import LatentWidths

LAYOUT = LatentWidths(kv_lora_rank=20, qk_rope_head_dim=8)
HIDDEN = 64


@pytest.fixture(params=[*VARIANTS, "bias"])
def layer(request):
    """A converted layer with everything it was made of."""
    bias = request.param == "bias"
    model = tiny_llama("gqa" if bias else request.param, attention_bias=bias)
    model.requires_grad_(False)
    rotary = LlamaRotaryEmbedding(model.config)
    weights = LLAMA.attention_weights(model.model.layers[0].self_attn, model.config, rotary)
    torch.manual_seed(3)
    # Some directions matter more than others, and the mean is not zero.
    inputs = torch.randn(3, 40, HIDDEN) * torch.linspace(0.2, 2, HIDDEN) + 0.5
    statistics = layer_statistics(weights, inputs)
    selection = ROTARY["calibrated"](weights, statistics, LAYOUT.qk_rope_head_dim)
    target = latent_target(weights, statistics, selection, key_weight=0.5)
    factors = LATENT["calibrated"](target, LAYOUT.kv_lora_rank)
    tensors = assemble(weights, statistics, selection, factors, bias)
    return tensors, weights, statistics, inputs


def product(compressed):
    return compressed["q_b_proj.weight"].double() @ compressed["q_a_proj.weight"].double()


def explicit_metric(tensors, weights, statistics, inputs):
    """The cost of a unit error in each direction of a head's query, from every key separately."""
    heads, d, _ = weights.query.shape
    rank, rope = LAYOUT.kv_lora_rank, LAYOUT.qk_rope_head_dim
    query = weights.query.double().flatten(0, 1)
    key = weights.key.double().flatten(0, 1)
    keys, received = [], []
    for x in inputs.double():
        positions = torch.arange(len(x))
        turn = torch.polar(
            torch.ones(len(x), d // 2).double(), positions[:, None] * weights.inv_freq.double()
        )

        def turned(x, matrix, bias, turn=turn):
            y = (x @ matrix.T).view(len(x), -1, d) + bias.double()
            return torch.complex(*y.chunk(2, dim=-1)) * turn[:, None]

        u = turned(x, query, weights.query_bias)
        z = turned(x, key, weights.key_bias).repeat_interleave(weights.group, 1)
        scores = torch.einsum("mhf,nhf->hmn", u, z.conj()).real * weights.scale
        future = positions[None] > positions[:, None]
        received.append(scores.masked_fill(future, float("-inf")).softmax(-1).sum((0, 1)))
        rows = x @ tensors["kv_a_proj_with_mqa.weight"].double().T
        keys.append(rows + tensors.get("kv_a_proj_with_mqa.bias", torch.zeros(1)).double())
    rows = torch.cat(keys)
    a = torch.cat([w / w.sum() / len(inputs) for w in received])
    c, z = rows[:, :rank], torch.complex(*rows[:, rank:].chunk(2, dim=-1))
    up = tensors["kv_b_proj.weight"].double().view(-1, 2 * d, rank)[:, :d]
    up = up.repeat_interleave(weights.group, 0)
    kept = [int((weights.inv_freq == f).nonzero()) for f in tensors["rope_inv_freq"]]
    metric = torch.zeros(heads, d + rope, d + rope, dtype=torch.float64)
    for h in range(heads):
        k = c @ up[h].T
        k = k - a @ k
        metric[h, :d, :d] = torch.einsum("n,ni,nj->ij", a, k, k)
        for j, f in enumerate(kept):
            mean = (a.to(z.dtype) @ z[:, j]) * statistics.rho[h, f]
            power = float(a @ z[:, j].abs().square() - mean.abs().square()) / 2
            for i in (d + j, d + j + rope // 2):
                metric[h, i, i] = power
    return metric * statistics.gamma[:, None, None] * weights.scale**2


def test_full_rank_is_the_uncompressed_query(layer):
    tensors, weights, statistics, _ = layer
    compressed = compress_query(tensors, weights, statistics, LAYOUT, HIDDEN)
    assert compressed["q_a_proj.weight"].shape == (HIDDEN, HIDDEN)
    # Both factors are rounded to float32, and products sum 64 of them.
    torch.testing.assert_close(
        product(compressed), tensors["q_proj.weight"].double(), atol=2e-6, rtol=0
    )
    assert not any(name.startswith("q_proj") for name in compressed)
    unchanged = compressed.keys() & tensors.keys()
    assert unchanged == {name for name in tensors if not name.startswith("q_proj")}
    assert all(torch.equal(compressed[name], tensors[name]) for name in unchanged)
    bias = tensors.get("q_proj.bias")
    assert ("q_b_proj.bias" in compressed) == (bias is not None)
    if bias is not None:
        assert torch.equal(compressed["q_b_proj.bias"], bias)


@pytest.mark.parametrize("rank", [1, 12, 40])
def test_no_other_factors_change_the_weighted_queries_less(layer, rank):
    tensors, weights, statistics, inputs = layer
    roots = [
        vectors * values.clamp_min(0).sqrt()
        for values, vectors in map(torch.linalg.eigh, explicit_metric(*layer))
    ]
    root = torch.block_diag(*roots)  # root @ root.T is the metric
    x = inputs.double().flatten(0, 1)

    def weighted(matrix):
        return x @ matrix.T @ root / len(x) ** 0.5

    W = tensors["q_proj.weight"].double()
    best = product(compress_query(tensors, weights, statistics, LAYOUT, rank))
    # Every query that occurs, one row each: no matrix of this rank is closer to them than their
    # truncated SVD (Eckart-Young). Statistics are float32, hence the tolerance.
    least = float(torch.linalg.svdvals(weighted(W))[rank:].square().sum())
    assert least > 0
    assert float(weighted(W - best).square().sum()) == pytest.approx(least, rel=1e-4)


def test_the_down_projection_is_orthonormal(layer):
    tensors, weights, statistics, _ = layer
    A = compress_query(tensors, weights, statistics, LAYOUT, 12)["q_a_proj.weight"]
    torch.testing.assert_close(A @ A.T, torch.eye(12), atol=1e-6, rtol=0)


def test_a_text_with_fewer_different_tokens_than_dimensions(layer):
    tensors, weights, _, _ = layer
    torch.manual_seed(4)
    # As before the first layer: repeated rows, most of their power in one direction.
    few = torch.randn(12, HIDDEN) + 30 * torch.randn(HIDDEN)
    inputs = few[torch.randint(12, (3, 40))]
    statistics = layer_statistics(weights, inputs)
    assert float(torch.linalg.eigvalsh(statistics.token_moment)[0]) < 0
    compressed = compress_query(tensors, weights, statistics, LAYOUT, 16)
    # Sixteen numbers hold all queries of a text of rank twelve.
    rows = few.double()
    expected = rows @ tensors["q_proj.weight"].double().T
    error = (rows @ product(compressed).T - expected).norm() / expected.norm()
    assert float(error) < 1e-2
