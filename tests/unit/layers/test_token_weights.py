"""The weights of tokens in a refit."""

import math

import pytest
import torch

from conversion.layers.token_weights import LIMIT, RIDGE, equal_weights, fit_token_weights

HIDDEN, TOKENS = 24, 400


def text(sizes):
    """Two windows: streams of very different sizes, gradients of the sizes given."""
    torch.manual_seed(2)
    streams = list(torch.randn(2, TOKENS, HIDDEN) * 10 ** torch.linspace(-2, 2, TOKENS)[:, None])
    directions = torch.nn.functional.normalize(torch.randn(2, 3, TOKENS, HIDDEN), dim=-1)
    return streams, [list(d * sizes(h)[:, None]) for h, d in zip(streams, directions, strict=True)]


def rms(stream):
    return stream.square().mean(1).sqrt()


def test_equal_weights_only_undo_the_size_of_the_stream():
    streams, _ = text(rms)
    weights = equal_weights(HIDDEN)(streams[0])
    torch.testing.assert_close(weights * rms(streams[0]) ** 2, torch.ones(TOKENS))


def test_a_sensitivity_that_the_stream_tells_is_found():
    a = torch.linspace(-0.4, 0.5, HIDDEN)

    def log_sensitivity(stream):
        return 0.7 + stream / rms(stream)[:, None] @ a

    # |g|^2 |h|^2 = exp(log_sensitivity), and the weights go half the way.
    streams, gradients = text(lambda h: (0.5 * log_sensitivity(h)).exp() / rms(h))
    found = fit_token_weights(streams, gradients)
    expected = torch.cat([0.5 * log_sensitivity(h) for h in streams])
    logs = torch.cat([(found(h) * rms(h) ** 2).log() for h in streams])
    # Up to a common factor, and drawn towards equal weights: RIDGE * HIDDEN = 72 tokens' power,
    # beside 2 * 399; one draw of as many differs in its directions by some per cent.
    shrunk = 798 / (798 + RIDGE * HIDDEN)
    centred = (expected - expected.mean()) * shrunk
    torch.testing.assert_close(logs - logs.mean(), centred, atol=0.1, rtol=0)
    assert float(centred.abs().max()) > 1


def test_the_fit_is_ridge_regression_without_first_tokens():
    streams, gradients = text(lambda h: torch.rand(TOKENS) + 0.1)
    # The label sets' gradients differ: their squares are averaged.
    gradients = [[g * (k + 1) for k, g in enumerate(sets)] for sets in gradients]
    found = fit_token_weights(streams, gradients)
    X = torch.cat([(h / rms(h)[:, None])[1:] for h in streams]).double()
    y = torch.cat(
        [
            (sum(g.square().sum(1) for g in sets) / 3 * rms(h) ** 2)[1:]
            for h, sets in zip(streams, gradients, strict=True)
        ]
    ).double()
    y = (y / y.median()).log().clamp(-LIMIT, LIMIT) / 2
    centred = X - X.mean(0)
    pull = (RIDGE * HIDDEN * centred.square().sum() / HIDDEN / len(X)).sqrt()
    stacked = torch.cat((centred, pull * torch.eye(HIDDEN, dtype=torch.float64)))
    a = torch.linalg.lstsq(stacked, torch.cat((y - y.mean(), torch.zeros(HIDDEN)))).solution
    # float32 against float64.
    torch.testing.assert_close(found.direction.double(), a, atol=1e-4, rtol=0)
    assert found.offset == pytest.approx(float(y.mean() - X.mean(0) @ a), abs=1e-4)


def test_a_token_like_no_other_has_a_bounded_weight():
    streams, gradients = text(lambda h: (3 * h[:, 0] / rms(h)).exp() / rms(h))
    found = fit_token_weights(streams, gradients)
    sink = torch.zeros(1, HIDDEN)
    sink[0, 0] = 1e3
    weight = float(found(sink) * rms(sink) ** 2)
    assert weight == pytest.approx(math.exp(LIMIT), rel=1e-3)


@pytest.mark.parametrize("size", [0.0, math.inf, math.nan])
def test_gradients_that_say_nothing_leave_weights_equal(size):
    streams, gradients = text(lambda h: torch.full((TOKENS,), size))
    assert torch.equal(fit_token_weights(streams, gradients).direction, torch.zeros(HIDDEN))
