"""An original whose cache is quantised: where rounding happens, and what it costs."""

import pytest
import torch
from transformers import DynamicCache

from conversion.evaluation.quantised_cache import (
    KINDS,
    CacheKind,
    quantised_cache,
    quantised_cache_figures,
)
from tests.support.tiny import tiny_llama

IDS = torch.randint(256, (1, 40), generator=torch.Generator().manual_seed(0))


def coarse(exact_layers=0):
    return CacheKind(torch.round, torch.round, lambda d: d, exact_layers=exact_layers)


@pytest.fixture(scope="module")
def model():
    return tiny_llama(num_hidden_layers=5)


@torch.no_grad()
def logits(model, cache=None, ids=IDS):
    return model(ids, past_key_values=cache, use_cache=cache is not None).logits


def test_with_and_without_a_cache_the_same_is_rounded(model):
    plain = logits(model)
    with quantised_cache(model, coarse()):
        whole = logits(model)
        cache = DynamicCache(config=model.config)
        parts = [logits(model, cache, part) for part in IDS.split([7, 1, 32], dim=1)]
    assert not torch.allclose(whole, plain, atol=0.1)
    # Float32 rounding of logits up to about 20.
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-3, rtol=0)
    for layer in cache.layers:
        assert torch.equal(layer.keys, layer.keys.round())
        assert torch.equal(layer.values, layer.values.round())
    assert torch.equal(logits(model), plain)


def test_layers_at_either_end_stay_exact(model):
    cache = DynamicCache(config=model.config)
    with quantised_cache(model, coarse(exact_layers=2)):
        logits(model, cache)
    rounded = [torch.equal(layer.keys, layer.keys.round()) for layer in cache.layers]
    assert rounded == [False, False, True, False, False]


@pytest.mark.parametrize(("layers", "exact"), [(1, 0), (3, 2), (4, 4), (9, 4)])
def test_at_most_half_of_the_layers_stay_exact_at_either_end(layers, exact):
    kind = KINDS["turboquant_4bit_nc"]
    assert sum(kind.is_exact(layer, layers) for layer in range(layers)) == exact


def test_bytes_are_counted_with_scales_and_exact_layers(model):
    # Heads of 16: 8 bytes and a scale of 4, key and value; two heads, five layers.
    figures = quantised_cache_figures(model.config, KINDS["int4_per_token_head"], 2)
    assert figures.bytes_per_token == 5 * 2 * 2 * (8 + 4)
    assert figures.baseline_bytes_per_token == 5 * 2 * 2 * 16 * 2
    # One layer of 6 + 2 and 6 + 4 bytes, four of 64.
    figures = quantised_cache_figures(model.config, KINDS["turboquant_3bit_nc"], 2)
    assert figures.bytes_per_token == 2 * (18 + 4 * 64)


@pytest.mark.parametrize("name", KINDS)
def test_a_quantised_row_is_near_the_row(name):
    torch.manual_seed(0)
    x = torch.randn(50, 3, 64)
    kind = KINDS[name]
    for rounding in (kind.keys, kind.values):
        error = (rounding(x) - x).square().mean()
        # A uniform or Lloyd-Max quantiser of 3 bits leaves 3 to 5 % of a Gaussian's variance.
        assert 0 < error < 0.06
