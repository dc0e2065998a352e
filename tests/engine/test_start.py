"""One start of a real engine: another width in every layer, vLLM's smallest blocks."""

import pytest

from tests.support.engine import assert_same_greedy, run_engines
from tests.support.tiny_engine import CACHE_TOKENS, tiny_engine

BLOCK_SIZE = 16


@pytest.fixture(scope="module")
def run(tiny_checkpoint, tiny_prompts):
    (result,) = run_engines(tiny_engine(tiny_checkpoint, tiny_prompts, BLOCK_SIZE))
    return result


def test_same_tokens_as_transformers(run, tiny_references):
    assert run["block_size"] == BLOCK_SIZE
    (batch,) = run["steps"]
    assert_same_greedy(batch["outputs"], tiny_references)


def test_every_layer_caches_its_own_width(run):
    # As many tokens as fit if no layer is padded to the widest.
    assert run["cache_tokens"] == CACHE_TOKENS
