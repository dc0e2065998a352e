"""Another width in every layer, at every block size, with and without room for all requests; and
the same model with factorised queries."""

import pytest
import torch

from conversion.checkpoint.loading import load_converted
from tests.support.engine import (
    ENGINE,
    assert_same_greedy,
    greedy,
    greedy_sampling,
    run_engines,
)
from tests.support.tiny_converted import TINY_WIDTHS

pytestmark = ENGINE

BLOCK_SIZES = (16, 32, 128)
LENGTHS = (1, 16, 17, 40, 100, 190)
NEW_TOKENS = 48
BYTES_PER_TOKEN = 4 * sum(rank + rope for rank, rope in TINY_WIDTHS)  # float32
CACHE_TOKENS = 1024
# All requests together grow to sum(LENGTHS) + 6 * 48 tokens.
SMALL_CACHE_TOKENS = 320


@pytest.fixture(scope="module")
def tiny_prompts():
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(256, (length,), generator=generator).tolist() for length in LENGTHS]


@pytest.fixture(scope="module")
def references(tiny_model, tiny_prompts):
    return [greedy(tiny_model, prompt, NEW_TOKENS) for prompt in tiny_prompts]


@pytest.fixture(scope="module")
def runs(tiny_checkpoint, tiny_query_checkpoint, tiny_prompts):
    sampling = greedy_sampling(NEW_TOKENS)
    common = {
        "model": str(tiny_checkpoint),
        "dtype": "float32",
        "skip_tokenizer_init": True,
        "max_model_len": 256,
        "enforce_eager": True,
    }

    def engine(block_size, tokens, **changes):
        cache = {"block_size": block_size, "kv_cache_memory_bytes": tokens * BYTES_PER_TOKEN}
        return {
            "llm": common | cache | changes,
            "steps": [{"prompts": tiny_prompts, "sampling": sampling}],
        }

    engines = [engine(size, CACHE_TOKENS) for size in BLOCK_SIZES]
    small = engine(16, SMALL_CACHE_TOKENS, max_num_batched_tokens=32, max_num_seqs=8)
    alone = {"prompts": tiny_prompts, "sampling": sampling, "alone": True, "reset": True}
    small["steps"].append(alone)
    query = engine(16, CACHE_TOKENS, model=str(tiny_query_checkpoint), enforce_eager=False)
    results = run_engines(*engines, small, query)
    return dict(zip((*BLOCK_SIZES, "small", "query"), results, strict=True))


@pytest.mark.parametrize("block_size", BLOCK_SIZES)
def test_same_tokens_as_transformers(runs, references, block_size):
    assert runs[block_size]["block_size"] == block_size
    (batch,) = runs[block_size]["steps"]
    assert_same_greedy(batch["outputs"], references)


def test_every_layer_caches_its_own_width(runs):
    # As many tokens as fit if no layer is padded to the widest.
    for block_size in BLOCK_SIZES:
        assert runs[block_size]["cache_tokens"] == CACHE_TOKENS
    assert runs["small"]["cache_tokens"] == SMALL_CACHE_TOKENS


def test_preempted_requests(runs, references):
    batch, alone = runs["small"]["steps"]
    assert batch["preemptions"] > 0
    assert alone["preemptions"] == 0
    assert_same_greedy(batch["outputs"], references)
    assert_same_greedy(alone["outputs"], references)


def test_factorised_queries(runs, references, tiny_query_checkpoint, tiny_prompts):
    model = load_converted(tiny_query_checkpoint, torch.float32)[0]
    expected = [greedy(model, prompt, NEW_TOKENS) for prompt in tiny_prompts]
    assert [r.tokens for r in expected] != [r.tokens for r in references]
    (batch,) = runs["query"]["steps"]
    assert_same_greedy(batch["outputs"], expected)
