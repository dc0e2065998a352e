"""Statistics do not depend on how queries are split into blocks, nor on heads side by side."""

import dataclasses

import pytest
import torch

from conversion.calibration import statistics
from conversion.calibration.head_sums import by_distance
from conversion.calibration.rotated_keys import RotatedKeys
from conversion.calibration.statistics import layer_statistics
from tests.support.measured import measure


def tensors(result):
    for field in dataclasses.fields(result):
        value = getattr(result, field.name)
        if isinstance(value, RotatedKeys):
            yield from ((f"rotated.{name}", tensor) for name, tensor in vars(value).items())
        else:
            yield field.name, value


@pytest.mark.parametrize("variant", ["gqa", "mqa", "mha"])
@pytest.mark.parametrize("queries", [1, 7, 16, 39])
def test_blocks_of_queries_add_up_to_the_window(monkeypatch, variant, queries):
    weights, _, inputs = measure(variant)
    whole = dict(tensors(layer_statistics(weights, inputs)))
    monkeypatch.setattr(statistics, "QUERIES", queries)
    blocks = dict(tensors(layer_statistics(weights, inputs)))
    for name, tensor in blocks.items():
        # Float32 sums of 40 tokens in another order.
        torch.testing.assert_close(tensor, whole[name], atol=2e-5, rtol=2e-5, msg=name)


def test_heads_side_by_side_are_the_same_as_one_after_the_other():
    weights, alone, inputs = measure("gqa")
    torch.set_num_threads(2)
    try:
        together = dict(tensors(layer_statistics(weights, inputs)))
    finally:
        torch.set_num_threads(1)
    for name, tensor in tensors(alone):
        # Products of two threads add up in another order.
        torch.testing.assert_close(together[name], tensor, atol=1e-6, rtol=1e-6, msg=name)


@pytest.mark.parametrize(("first", "queries"), [(0, 1), (0, 9), (5, 1), (5, 2), (3, 6)])
def test_attention_by_distance(first, queries):
    keys = first + queries
    a = torch.rand(queries, keys).tril_(first)
    expected = torch.zeros(keys)
    for row in range(queries):
        for key in range(first + row + 1):
            expected[first + row - key] += a[row, key]
    torch.testing.assert_close(by_distance(a), expected)
