"""The quantised caches of ``--baseline-kv-cache-dtype``, against vLLM's own kernels."""

import subprocess
import sys

import pytest
import torch

from conversion.evaluation.quantised_cache import KINDS
from tests.support.processes import environment

TOKENS, QUERIES, HEADS = 18, 2, 2
WIDTHS = dict.fromkeys(KINDS, (64,)) | {"int4_per_token_head": (64, 96)}


def heads(d):
    torch.manual_seed(d)
    query = torch.randn(QUERIES, 2 * HEADS, d)
    # Components of unequal size, as keys have, and a head that is all zeros.
    keys, values = torch.randn(2, TOKENS, HEADS, d) * torch.linspace(0.1, 4, d)
    keys[3], values[3] = 0, 0
    return query, keys, values


def attention(query, keys, values):
    keys, values = (x.repeat_interleave(2, 1).transpose(0, 1) for x in (keys, values))
    mask = torch.ones(QUERIES, TOKENS, dtype=torch.bool).tril(TOKENS - QUERIES)
    out = torch.nn.functional.scaled_dot_product_attention(
        query.transpose(0, 1), keys, values, attn_mask=mask
    )
    return out.transpose(0, 1)


@pytest.mark.slow
def test_attention_over_a_quantised_cache_is_vllms(tmp_path):
    given = {(name, d): heads(d) for name in KINDS for d in WIDTHS[name]}
    torch.save(given, tmp_path / "heads.pt")
    command = [sys.executable, "-m", "tests.support.vllm_caches", str(tmp_path / "heads.pt")]
    subprocess.run(command, env=environment(), check=True, timeout=600)
    found = torch.load(tmp_path / "heads.pt")
    assert list(found) == list(given)
    for (name, d), (out, bytes_per_token) in found.items():
        query, keys, values = given[name, d]
        kind = KINDS[name]
        expected = attention(query, kind.keys(keys), kind.values(values))
        # Float32: vLLM turns queries and outputs where we turn keys and values back.
        torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)
        # The rounding itself is a thousand times that.
        assert (expected - attention(query, keys, values)).abs().max() > 1e-2
        assert kind.bytes_per_head(d) * HEADS == bytes_per_token
