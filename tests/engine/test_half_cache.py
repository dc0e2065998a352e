"""Half the cache: vLLM and transformers run the same model, and twice the tokens fit."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.engine import (
    NEW_TOKENS,
    PROMPT_LENGTHS,
    assert_same_greedy,
    greedy,
    greedy_sampling,
    run_engines,
)

pytestmark = pytest.mark.slow

SOME = slice(3, None, 2)  # three prompts, the longest among them
BLOCK = 128  # vLLM's default on CPUs
ORIGINAL_BLOCKS = 40
# So many blocks of the original exactly: layers, keys and values, KV heads, head_dim, float32.
CACHE_BYTES = ORIGINAL_BLOCKS * BLOCK * 30 * 2 * 3 * 64 * 4


@pytest.fixture(scope="module")
def started(half_cache, source, prompts, tmp_path_factory):
    folder = tmp_path_factory.mktemp("original")
    config = type(source.config).from_dict(source.config.to_dict())
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    common = {"dtype": "float32", "kv_cache_memory_bytes": CACHE_BYTES, "max_model_len": 4096}
    batch = {"prompts": prompts[SOME], "sampling": greedy_sampling(NEW_TOKENS)}
    half = common | {"model": str(half_cache)}
    # How many tokens fit depends on the config alone: no weights, and nothing is compiled.
    original = common | {
        "model": str(folder),
        "load_format": "dummy",
        "skip_tokenizer_init": True,
        "enforce_eager": True,
    }
    with ThreadPoolExecutor() as pool:
        yield (
            pool.submit(run_engines, {"llm": half, "steps": [batch | {"alone": True}, batch]}),
            pool.submit(run_engines, {"llm": original}),
        )


@pytest.fixture(scope="module")
def references(half_cache_model, prompts):
    return [greedy(half_cache_model, prompt, NEW_TOKENS) for prompt in prompts[SOME]]


@pytest.fixture(scope="module")
def runs(started, references):
    # The references are asked for here to be computed while the engines run.
    del references
    (half,), (original,) = (job.result() for job in started)
    return {"half": half, "original": original}


def test_each_prompt_alone(runs, references):
    assert_same_greedy(runs["half"]["steps"][0]["outputs"], references)


def test_one_batch_with_prefix_cache_hits(runs, references):
    outputs = runs["half"]["steps"][1]["outputs"]
    expected = [(length - 1) // BLOCK * BLOCK for length in PROMPT_LENGTHS[SOME]]
    assert [output["cached"] for output in outputs] == expected
    assert_same_greedy(outputs, references)


def test_twice_the_tokens_fit(runs):
    assert runs["original"]["cache_tokens"] == ORIGINAL_BLOCKS * BLOCK
    assert runs["half"]["cache_tokens"] == 2 * ORIGINAL_BLOCKS * BLOCK
    # The figure in the engine's log.
    for run in runs.values():
        assert run["cache_tokens_reported"] == run["cache_tokens"]
