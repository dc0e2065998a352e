"""The backend for GPUs in an engine on a CPU: batches, chunks and prefixes as vLLM has them."""

import pytest
import torch

from conversion.checkpoint.loading import load_converted
from tests.support.engine import assert_same_greedy, greedy
from tests.support.tiny_converted import save_tiny_converted
from tests.support.tiny_engine import random_prompts, tiny_gpu_run

WIDTHS = [(24, 16), (8, 8), (40, 0)]
LENGTHS = (1, 17, 40, 100)
NEW_TOKENS = 6


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_tiny_converted(tmp_path_factory.mktemp("gpu"), widths=WIDTHS, v_head_dim=16)


@pytest.fixture(scope="module")
def prompts():
    return random_prompts(LENGTHS)


@pytest.fixture(scope="module")
def run(checkpoint, prompts):
    # The longest prompt comes in chunks, beside others that decode.
    sizes = {"max_model_len": 256, "kv_cache_memory_bytes": 1 << 20}
    return tiny_gpu_run(checkpoint, prompts, NEW_TOKENS, max_num_batched_tokens=48, **sizes)


@pytest.mark.parametrize("step", [0, 1], ids=["new", "cached"])
def test_same_tokens_as_transformers(run, checkpoint, prompts, step):
    model = load_converted(checkpoint, torch.float32)[0]
    references = [greedy(model, prompt, NEW_TOKENS) for prompt in prompts]
    assert_same_greedy(run["steps"][step]["outputs"], references)


def test_prefills_were_expanded_and_prefixes_found(run):
    assert run["expansions"] > 0
    assert [output["cached"] for output in run["steps"][1]["outputs"]] == [0, 16, 32, 96]
