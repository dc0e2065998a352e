"""Nothing truncated: the converted model in vLLM is the original."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.engine import (
    NEW_TOKENS,
    PROMPT_LENGTHS,
    assert_same_greedy,
    assert_same_text_in_bfloat16,
    greedy,
    greedy_sampling,
    run_engines,
    text_logprobs,
)

pytestmark = pytest.mark.slow

TEXT = PROMPT_LENGTHS.index(300)
CHUNK = 256
# Blocks of 16 tokens: room for the longest prompt's continuation (and the block vLLM keeps for
# itself), but not for those of all the others together.
SMALL_CACHE_BLOCKS = 99
BYTES_PER_TOKEN = 30 * 2 * 3 * 64 * 4  # layers, keys and values, KV heads, head_dim, float32


@pytest.fixture(scope="module")
def started(full_width, prompts):
    sampling = greedy_sampling(NEW_TOKENS)
    # Compiled, as vLLM serves unless told otherwise; the others start sooner.
    usual = {
        "model": str(full_width),
        "dtype": "float32",
        "kv_cache_memory_bytes": 1 << 28,
        "max_model_len": 4096,
    }
    crowded = usual | {
        "kv_cache_memory_bytes": SMALL_CACHE_BLOCKS * 16 * BYTES_PER_TOKEN,
        "block_size": 16,
        "max_model_len": 1568,
        "max_num_batched_tokens": CHUNK,
        "max_num_seqs": 8,
        "enforce_eager": True,
    }
    bfloat16 = usual | {"dtype": "bfloat16", "enforce_eager": True}
    batch = {"prompts": prompts, "sampling": sampling}
    text = {
        "prompts": [prompts[TEXT]],
        "sampling": {"temperature": 0, "max_tokens": 1, "prompt_logprobs": 0},
    }
    with ThreadPoolExecutor() as pool:
        yield (
            pool.submit(run_engines, {"llm": usual, "steps": [batch, batch | {"alone": True}]}),
            pool.submit(
                run_engines,
                {"llm": crowded, "steps": [batch]},
                {"llm": bfloat16, "steps": [text]},
            ),
        )


@pytest.fixture(scope="module")
def references(original, prompts):
    return [greedy(original, prompt, NEW_TOKENS) for prompt in prompts]


@pytest.fixture(scope="module")
def runs(started, references):
    # The references are asked for here to be computed while the engines run.
    del references
    first, second = started
    results = first.result() + second.result()
    return dict(zip(("usual", "crowded", "bfloat16"), results, strict=True))


def test_all_prompts_in_one_batch(runs, references):
    outputs = runs["usual"]["steps"][0]["outputs"]
    assert [output["cached"] for output in outputs] == [0] * len(outputs)
    assert_same_greedy(outputs, references)


def test_each_prompt_alone_with_prefix_cache_hits(runs, references):
    outputs = runs["usual"]["steps"][1]["outputs"]
    block = runs["usual"]["block_size"]
    # Whole blocks, and at least one token is left to compute: the shorter prompts hit nothing.
    expected = [(length - 1) // block * block for length in PROMPT_LENGTHS]
    assert [output["cached"] for output in outputs] == expected
    assert_same_greedy(outputs, references)


def test_chunked_prefill_with_preemption(runs, references):
    assert max(PROMPT_LENGTHS) > CHUNK
    assert runs["crowded"]["cache_tokens"] == SMALL_CACHE_BLOCKS * 16
    step = runs["crowded"]["steps"][0]
    assert step["preemptions"] > 0
    assert_same_greedy(step["outputs"], references)


def test_bfloat16_log_probabilities(runs, original, prompts):
    output = runs["bfloat16"]["steps"][0]["outputs"][0]
    exact = text_logprobs(original, prompts[TEXT])
    assert_same_text_in_bfloat16(output["prompt_logprobs"][1:], exact)
