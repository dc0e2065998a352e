import pytest
import torch

import conversion.runtime.dense_attention as dense


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
@pytest.mark.parametrize("scores", [1, 6 * 9**2, 1 << 20])
@pytest.mark.parametrize("queries", [1, 4, 9, 128])
def test_it_is_causal_attention(monkeypatch, kv_heads, scores, queries):
    """PyTorch's own in float64; however few heads and queries are taken at once."""
    monkeypatch.setattr(dense, "SCORES", scores)
    monkeypatch.setattr(dense, "QUERIES", queries)
    torch.manual_seed(0)
    query, key, value = (
        torch.randn(2, heads, 9, width, dtype=torch.float64, requires_grad=True)
        for heads, width in ((6, 8), (kv_heads, 8), (kv_heads, 5))
    )
    # Autocast rounds float32 alone: the dense products, in float64.
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = dense.dense_attention(None, query, key, value, None, scaling=0.3)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, scale=0.3, enable_gqa=True
    ).transpose(1, 2)
    torch.testing.assert_close(found, expected)
    probe = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad(found, (query, key, value), probe),
        torch.autograd.grad(expected, (query, key, value), probe),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("kv_heads", [1, 2, 6])
@pytest.mark.parametrize("rounded", [False, True])
def test_a_window_hides_what_is_behind_it(kv_heads, rounded):
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, n, 9, 8, dtype=torch.float64) for n in (6, *[kv_heads] * 2))
    with torch.autocast("cpu", torch.bfloat16, enabled=rounded):
        found, _ = dense.dense_attention(
            None, query, key, value, None, scaling=0.3, sliding_window=4
        )
    key, value = (x.repeat_interleave(6 // kv_heads, dim=1) for x in (key, value))
    scores = 0.3 * query @ key.mT
    for t in range(9):
        for n in range(9):
            if not t - 4 < n <= t:
                scores[:, :, t, n] = -torch.inf
    expected = (scores.softmax(-1) @ value).transpose(1, 2)
    # Rounding to bfloat16: 8 bits.
    tolerance = {"atol": 0.03, "rtol": 0} if rounded else {}
    torch.testing.assert_close(found.double(), expected, **tolerance)
