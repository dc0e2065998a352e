"""Coded rows in the engine: the same tokens as transformers, in as many bytes as the rows have."""

from importlib.metadata import version
from importlib.util import find_spec

import pytest
import torch

from conversion.checkpoint.loading import load_converted
from tests.support.engine import assert_same_greedy, greedy, run_engines
from tests.support.tiny_converted import CODED_BITS, CODED_WIDTHS, save_tiny_coded
from tests.support.tiny_engine import NEW_TOKENS, SAMPLING, tiny_engine
from vllm_mha2mla.config import CONSTANTS

pytestmark = pytest.mark.slow

ROW_BYTES = sum(sum(bits) + 2 for bits in CODED_BITS)
WHOLE_BYTES = 2 * sum(rank + rope for rank, rope in CODED_WIDTHS)  # in bfloat16
TOKENS, FEW_TOKENS = 1024, 320
# Those that attention reads and no linear layer of vLLM does.
OWN_WEIGHTS = ("kv_b_proj.weight", *CONSTANTS)
SEEDED = SAMPLING | {"temperature": 1.0, "seed": 7}
NO_GUESSES = find_spec("vllm") is not None and version("vllm").startswith("0.30.")
GUESSES = {
    "method": "ngram",
    "num_speculative_tokens": 3,
    "prompt_lookup_max": 3,
    "prompt_lookup_min": 1,
}


@pytest.fixture(scope="module")
def coded(tmp_path_factory):
    return save_tiny_coded(tmp_path_factory.mktemp("coded"))


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """Other weights for the same widths and bits."""
    return save_tiny_coded(tmp_path_factory.mktemp("other"), seed=1)


@pytest.fixture(scope="module")
def runs(coded, other, tiny_prompts):
    def engine(block_size, tokens, row_bytes, **changes):
        size = tokens * row_bytes
        return tiny_engine(coded, tiny_prompts, block_size, kv_cache_memory_bytes=size, **changes)

    plenty = engine(128, TOKENS, ROW_BYTES)
    plenty["steps"].append({"prompts": tiny_prompts, "sampling": SEEDED})
    exchanging = [
        {"weights": str(other)},
        {"weights": str(coded), "only": OWN_WEIGHTS, "by": "load_weights"},
        {"weights": str(other), "only": OWN_WEIGHTS, "by": "copy"},
    ]
    greedily = {"prompts": tiny_prompts, "sampling": SAMPLING}
    plenty["steps"] += [greedily | exchange for exchange in exchanging]
    # Prompts in chunks, requests that are preempted, and a prefix that is found again.
    few = engine(16, FEW_TOKENS, ROW_BYTES, max_num_batched_tokens=32, max_num_seqs=8)
    few["steps"].append({"prompts": tiny_prompts, "sampling": SAMPLING, "alone": True})
    # Read in chunks again.
    few["steps"].append({"prompts": tiny_prompts, "sampling": SEEDED, "reset": True})
    uncoded = engine(16, TOKENS, WHOLE_BYTES, kv_cache_dtype="bfloat16")
    guessing = engine(32, TOKENS, ROW_BYTES, speculative_config=GUESSES)
    return run_engines(plenty, few, uncoded, *([] if NO_GUESSES else [guessing]))


@pytest.fixture(scope="module")
def references(coded, tiny_prompts):
    model = load_converted(coded, torch.float32)[0]
    return [greedy(model, prompt, NEW_TOKENS) for prompt in tiny_prompts]


def test_the_cache_holds_as_many_tokens_as_rows_have_bytes(runs):
    assert [run["cache_tokens"] for run in runs] == [TOKENS, FEW_TOKENS, TOKENS, TOKENS][
        : len(runs)
    ]


def test_same_tokens_as_transformers(runs, references):
    assert_same_greedy(runs[0]["steps"][0]["outputs"], references)


def test_weights_exchanged_in_the_running_engine(runs, coded, other, tiny_prompts):
    *_, reloaded, loaded, copied = runs[0]["steps"]
    model = load_converted(other, torch.float32)[0]
    expected = [greedy(model, prompt, NEW_TOKENS) for prompt in tiny_prompts]
    assert_same_greedy(reloaded["outputs"], expected)
    assert_same_greedy(copied["outputs"], expected)
    own = load_converted(coded, torch.float32)[0].state_dict()
    own = {name: x for name, x in own.items() if name.endswith(OWN_WEIGHTS)}
    assert model.load_state_dict(own, strict=False).unexpected_keys == []
    expected = [greedy(model, prompt, NEW_TOKENS) for prompt in tiny_prompts]
    assert_same_greedy(loaded["outputs"], expected)


def test_chunked_prefill_preemption_and_prefix_cache(runs, references):
    batch, again, _ = runs[1]["steps"]
    assert batch["preemptions"] > 0
    assert_same_greedy(batch["outputs"], references)
    assert_same_greedy(again["outputs"], references)


def test_a_seed_makes_the_same_tokens_however_a_prompt_is_read(runs):
    whole, chunks = runs[0]["steps"][1], runs[1]["steps"][-1]
    assert chunks["preemptions"] > 0
    tokens = [[output["tokens"] for output in step["outputs"]] for step in (whole, chunks)]
    assert tokens[0] == tokens[1]
    assert tokens[0] != [output["tokens"] for output in runs[0]["steps"][0]["outputs"]]


def test_served_uncoded_where_it_is_asked_for(runs, coded, references, tiny_prompts):
    model = load_converted(coded, torch.float32)[0]
    for layer in model.model.layers:
        attention = layer.self_attn
        with torch.no_grad():
            attention.kv_a_proj_with_mqa.bias[attention.rank :] += attention.rotary_mean
        attention.code = None
    (batch,) = runs[2]["steps"]
    served = [output["logprobs"][0] for output in batch["outputs"]]
    # Rows in bfloat16: 2^-9 of each number.
    uncoded = [greedy(model, prompt, 1).logprobs[0] for prompt in tiny_prompts]
    assert served == pytest.approx(uncoded, abs=2e-2)
    assert served != pytest.approx([of_coded.logprobs[0] for of_coded in references], abs=5e-2)


@pytest.mark.skipif(NO_GUESSES, reason="vLLM 0.30 cannot speculate on CPUs, whatever the model")
def test_tokens_that_were_guessed(runs, references):
    (batch,) = runs[3]["steps"]
    assert batch["accepted"] > 0
    assert_same_greedy(batch["outputs"], references)
