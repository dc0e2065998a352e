"""A folded layer: the same attention, with rows that suit their code."""

import pytest
import torch

from conversion.coding.fold import folded
from conversion.coding.row_statistics import RowStatistics
from vllm_mha2mla.coding.codebooks import codebook
from vllm_mha2mla.coding.row_code import RowCode
from vllm_mha2mla.config import FIRST_ROW, ROPE_INV_FREQ, ROTARY_MEAN, LatentWidths
from vllm_mha2mla.rope import apply_rotary, rotary_angles

HEADS, KV_HEADS, D, HIDDEN, TOKENS = 4, 2, 16, 40, 400
CODE = RowCode(LatentWidths(24, 32), (6, 3, 3, 4, 1, 4, 1))
RANK, ROPE = 24, 32


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return {
        "q_proj.weight": torch.randn(HEADS * (D + ROPE), HIDDEN) / 6,
        "q_proj.bias": torch.randn(HEADS * (D + ROPE)),
        "kv_a_proj_with_mqa.weight": torch.randn(RANK + ROPE, HIDDEN) / 6,
        "kv_a_proj_with_mqa.bias": torch.randn(RANK + ROPE),
        "kv_b_proj.weight": torch.randn(KV_HEADS * 2 * D, RANK) / 5,
        "o_proj.weight": torch.randn(HIDDEN, HEADS * D) / 8,
        "o_proj.bias": torch.randn(HIDDEN),
        ROPE_INV_FREQ: torch.logspace(0, -3, ROPE // 2),
    }


@pytest.fixture
def x():
    torch.manual_seed(1)
    return torch.randn(TOKENS, HIDDEN) * torch.logspace(0.3, -0.5, HIDDEN) + torch.randn(HIDDEN)


def rows_of(tensors, x):
    bias = tensors.get("kv_a_proj_with_mqa.bias", torch.zeros(()))
    return x @ tensors["kv_a_proj_with_mqa.weight"].T + bias


@pytest.fixture
def statistics(layer, x):
    rows = rows_of(layer, x)
    torch.manual_seed(2)
    A = torch.randn(RANK + ROPE, RANK + ROPE) * torch.logspace(0, -2, RANK + ROPE)
    return RowStatistics(A @ A.T, rows.T.cov(correction=0), rows.mean(0), ROPE)


def attention(tensors, x):
    """The definition, one head after the other  # [tokens, hidden]"""
    q = x @ tensors["q_proj.weight"].T + tensors.get("q_proj.bias", torch.zeros(()))
    rows = rows_of(tensors, x)
    cos, sin = rotary_angles(torch.arange(len(x)), tensors[ROPE_INV_FREQ])
    u = rows[:, RANK:] + tensors.get(ROTARY_MEAN, torch.zeros(ROPE))
    up = tensors["kv_b_proj.weight"].view(KV_HEADS, 2, D, RANK)
    future = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
    heads = []
    for h, of_head in enumerate(q.view(len(x), HEADS, -1).unbind(1)):
        w_uk, w_uv = up[h // (HEADS // KV_HEADS)]
        nope, rope = of_head.split((D, ROPE), dim=1)
        scores = nope @ (rows[:, :RANK] @ w_uk.T).T
        scores = scores + apply_rotary(rope, cos, sin) @ apply_rotary(u, cos, sin).T
        p = (0.1 * scores).masked_fill(future, float("-inf")).softmax(-1)
        heads.append(p @ (rows[:, :RANK] @ w_uv.T))
    return torch.cat(heads, 1) @ tensors["o_proj.weight"].T + tensors["o_proj.bias"]


@pytest.mark.parametrize("with_bias", [True, False])
def test_attention_stays_the_same(layer, x, with_bias):
    if not with_bias:
        layer = {
            n: t for n, t in layer.items() if n not in ("q_proj.bias", "kv_a_proj_with_mqa.bias")
        }
    rows = rows_of(layer, x)
    statistics = RowStatistics(torch.eye(RANK + ROPE), rows.T.cov(correction=0), rows.mean(0), ROPE)
    found = folded(layer, statistics, CODE, HEADS, x[0])
    # Float32 with numbers of order one; a product of two dozen of them.
    torch.testing.assert_close(attention(found, x), attention(layer, x), atol=2e-4, rtol=2e-4)


def test_rows_are_centred_and_as_wide_as_their_codebooks(layer, x, statistics):
    rows = rows_of(folded(layer, statistics, CODE, HEADS, x[0]), x)
    gains = torch.tensor([codebook(bits).gain for bits in CODE.column_bits])
    assert rows.mean(0).abs().max() < 1e-4
    variance = (rows / gains).square().mean(0)
    torch.testing.assert_close(variance[:RANK], torch.ones(RANK), rtol=2e-3, atol=0)
    # Both numbers of a rotary pair share a factor.
    pairs = variance[RANK:].view(2, -1).mean(0)
    torch.testing.assert_close(pairs, torch.ones(ROPE // 2), rtol=2e-3, atol=0)


def test_components_that_cost_most_get_the_most_bits(layer, x, statistics):
    """Errors of one size, relative to a column, cost more the more bits it has."""
    found = folded(layer, statistics, CODE, HEADS, x[0])
    down = layer["kv_a_proj_with_mqa.weight"].double()
    # Columns of the new latent in coordinates of the old one, by least squares.
    new = found["kv_a_proj_with_mqa.weight"].double()[:RANK]
    to_new = new @ torch.linalg.pinv(down[:RANK])
    back = torch.linalg.inv(to_new)
    cost = (back.T @ statistics.metric[:RANK, :RANK].double() @ back).diagonal()
    gains = torch.tensor([codebook(bits).gain for bits in CODE.column_bits[:RANK]])
    relative = cost * gains.double().square()
    units = relative.view(-1, 8).mean(1)
    assert units[0] > units[1:].max()
    order = found[ROPE_INV_FREQ][:, None] == layer[ROPE_INV_FREQ]
    assert order.any(1).all()
    lost = (
        (statistics.metric.diagonal() * statistics.covariance.diagonal())[RANK:].view(2, -1).sum(0)
    )
    assert (lost[order.float().argmax(1)].diff() <= 0).all()


def test_first_row_is_where_a_text_begins(layer, x, statistics):
    first = torch.randn(HIDDEN)
    found = folded(layer, statistics, CODE, HEADS, first)
    torch.testing.assert_close(
        found[FIRST_ROW], rows_of(found, first[None])[0], atol=1e-3, rtol=1e-3
    )
