"""Coded rows through the backend for GPUs, in an engine on a CPU."""

import pytest
import torch

from conversion.checkpoint.loading import load_converted
from tests.support.engine import assert_same_greedy, greedy, greedy_sampling, run_gpu_backend
from tests.support.tiny_converted import save_tiny_converted

WIDTHS = [(24, 16), (16, 32), (40, 0)]
BITS = [[6, 4, 2, 4, 4], [4, 3, 3, 2, 3, 2], [8, 4, 3, 2, 1]]
LENGTHS = (1, 17, 40)
NEW_TOKENS = 3


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_tiny_converted(tmp_path_factory.mktemp("gpu"), widths=WIDTHS, row_bits=BITS)


@pytest.fixture(scope="module")
def prompts():
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(256, (length,), generator=generator).tolist() for length in LENGTHS]


@pytest.fixture(scope="module")
def run(checkpoint, prompts):
    step = {"prompts": prompts, "sampling": greedy_sampling(NEW_TOKENS)}
    settings = {
        "model": str(checkpoint),
        "dtype": "float32",
        "skip_tokenizer_init": True,
        "max_model_len": 128,
        "enforce_eager": True,
        "block_size": 16,
        "kv_cache_memory_bytes": 1 << 18,
        # The longest prompt comes in chunks, beside others that decode.
        "max_num_batched_tokens": 32,
        "max_num_seqs": 4,
        "enable_chunked_prefill": True,
    }
    return run_gpu_backend({"llm": settings, "steps": [step, step]})


@pytest.mark.parametrize("step", [0, 1], ids=["new", "cached"])
def test_same_tokens_as_transformers(run, checkpoint, prompts, step):
    model = load_converted(checkpoint, torch.float32)[0]
    references = [greedy(model, prompt, NEW_TOKENS) for prompt in prompts]
    assert_same_greedy(run["steps"][step]["outputs"], references)


def test_prefills_were_expanded_and_prefixes_found(run):
    assert run["expansions"] > 0
    assert [output["cached"] for output in run["steps"][1]["outputs"]] == [0, 16, 32]
