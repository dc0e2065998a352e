"""Models some of whose layers keep a sliding window, in the engine's cache of both kinds.

Prompts and what is generated are longer than the window, prompts longer than a step's tokens, and
the second time their beginnings are in the cache.
"""

import pytest

from tests.support.convert import convert_tiny
from tests.support.engine import assert_same_greedy, greedy, greedy_sampling, run_engines
from tests.support.tiny import tiny_tokenizer
from tests.support.tiny_engine import random_prompts, tiny_engine
from tests.support.tiny_families import HYBRIDS

pytestmark = pytest.mark.slow

PROMPTS = random_prompts((1, 40, 300))
NEW_TOKENS = 56
CODED = "Gemma3"
# Tokens of a coded layer's page: 8 times as many as keys and values in float32 would take.
PAGE = 8 * 32


def engine(folder):
    made = tiny_engine(
        folder, PROMPTS, 32, kv_cache_memory_bytes=1 << 23, max_num_batched_tokens=64,
        max_num_seqs=4, max_model_len=384,
    )  # fmt: skip
    return made | {
        "steps": [{"prompts": PROMPTS, "sampling": greedy_sampling(NEW_TOKENS)} for _ in range(2)]
    }


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A checkpoint of each, and the model in transformers that gives the same."""
    folder = tmp_path_factory.mktemp("hybrids")
    original = HYBRIDS["Qwen2"].original()
    found = {"Qwen2": (HYBRIDS["Qwen2"].save(folder / "Qwen2", original), original)}
    HYBRIDS[CODED].original().save_pretrained(folder / "source")
    tiny_tokenizer().save_pretrained(folder / "source")
    coded = convert_tiny(folder / "source", folder / "coded", cache_fraction=0.25)
    return found | {CODED: (folder / "coded", coded)}


@pytest.fixture(scope="module")
def runs(models):
    engines = [engine(folder) for folder, _ in models.values()]
    return dict(zip(models, run_engines(*engines), strict=True))


@pytest.mark.parametrize("name", ["Qwen2", CODED])
def test_same_tokens_as_transformers(runs, models, name):
    _, model = models[name]
    expected = [greedy(model, prompt, NEW_TOKENS) for prompt in PROMPTS]
    for batch in runs[name]["steps"]:
        assert_same_greedy(batch["outputs"], expected)
    again = [output["cached"] for output in runs[name]["steps"][1]["outputs"]]
    assert again[0] == 0
    assert again[2] >= PAGE
