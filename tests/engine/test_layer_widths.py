"""Another width in every layer, at larger blocks, with and without room for all requests; and the
same model with factorised queries. (The smallest blocks: ``test_start.py``.)"""

import pytest
import torch

from conversion.checkpoint.loading import load_converted
from tests.support.engine import assert_same_greedy, greedy, run_engines
from tests.support.tiny_engine import CACHE_TOKENS, NEW_TOKENS, SAMPLING, tiny_engine

pytestmark = pytest.mark.slow

BLOCK_SIZES = (32, 128)
# All requests together grow to sum(LENGTHS) + 6 * 48 tokens.
SMALL_CACHE_TOKENS = 320


@pytest.fixture(scope="module")
def runs(tiny_checkpoint, tiny_query_checkpoint, tiny_prompts):
    engines = [tiny_engine(tiny_checkpoint, tiny_prompts, size) for size in BLOCK_SIZES]
    small = tiny_engine(
        tiny_checkpoint,
        tiny_prompts,
        16,
        SMALL_CACHE_TOKENS,
        max_num_batched_tokens=32,
        max_num_seqs=8,
    )
    alone = {"prompts": tiny_prompts, "sampling": SAMPLING, "alone": True, "reset": True}
    small["steps"].append(alone)
    query = tiny_engine(tiny_query_checkpoint, tiny_prompts, 16, enforce_eager=False)
    results = run_engines(*engines, small, query)
    return dict(zip((*BLOCK_SIZES, "small", "query"), results, strict=True))


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_same_tokens_as_transformers(runs, tiny_references, block_size):
    assert runs[block_size]["block_size"] == block_size
    (batch,) = runs[block_size]["steps"]
    assert_same_greedy(batch["outputs"], tiny_references)


def test_every_layer_caches_its_own_width(runs):
    # As many tokens as fit if no layer is padded to the widest.
    for block_size in BLOCK_SIZES:
        assert runs[block_size]["cache_tokens"] == CACHE_TOKENS
    assert runs["small"]["cache_tokens"] == SMALL_CACHE_TOKENS


def test_preempted_requests(runs, tiny_references):
    batch, alone = runs["small"]["steps"]
    assert batch["preemptions"] > 0
    assert alone["preemptions"] == 0
    assert_same_greedy(batch["outputs"], tiny_references)
    assert_same_greedy(alone["outputs"], tiny_references)


def test_factorised_queries(runs, tiny_references, tiny_query_checkpoint, tiny_prompts):
    model = load_converted(tiny_query_checkpoint, torch.float32)[0]
    expected = [greedy(model, prompt, NEW_TOKENS) for prompt in tiny_prompts]
    assert [r.tokens for r in expected] != [r.tokens for r in tiny_references]
    (batch,) = runs["query"]["steps"]
    assert_same_greedy(batch["outputs"], expected)
