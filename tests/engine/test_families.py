"""Every family's latent attention in the engine gives the tokens of transformers' original."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.support.engine import assert_same_greedy, greedy, run_engines
from tests.support.tiny_engine import random_prompts, tiny_engine
from tests.support.tiny_families import FAMILIES

pytestmark = pytest.mark.slow

PROMPTS = random_prompts((1, 17, 40))
NEW_TOKENS = 16
# As good as another family's: Ministral as Mistral, OLMo-3 as OLMo-2; test_start.py has Llama.
SERVED = [name for name in FAMILIES if name not in ("Llama", "Ministral", "Olmo3")]


def engine(folder, **changes):
    made = tiny_engine(folder, PROMPTS, 16, kv_cache_memory_bytes=1 << 20, **changes)
    made["steps"][0]["sampling"] = made["steps"][0]["sampling"] | {"max_tokens": NEW_TOKENS}
    return made


@pytest.fixture(scope="module")
def originals():
    return {name: FAMILIES[name].original() for name in SERVED}


@pytest.fixture(scope="module")
def coded(tmp_path_factory):
    """Random weights, normed queries and keys, coded rows."""
    return FAMILIES["Qwen3"].save_coded(tmp_path_factory.mktemp("coded"))


@pytest.fixture(scope="module")
def runs(originals, coded, tmp_path_factory):
    folder = tmp_path_factory.mktemp("families")
    engines = [
        engine(FAMILIES[name].save(folder / name, original)) for name, original in originals.items()
    ]
    results = run_engines(*engines, engine(coded, enforce_eager=False))
    return dict(zip((*originals, "coded"), results, strict=True))


def expected(model):
    return [greedy(model, prompt, NEW_TOKENS) for prompt in PROMPTS]


@pytest.mark.parametrize("name", SERVED)
def test_same_tokens_as_the_original(runs, originals, name):
    (batch,) = runs[name]["steps"]
    assert_same_greedy(batch["outputs"], expected(originals[name]))


def test_coded_rows_of_normed_keys_compiled(runs, coded):
    model = AutoModelForCausalLM.from_pretrained(coded, dtype=torch.float32).eval()
    (batch,) = runs["coded"]["steps"]
    assert_same_greedy(batch["outputs"], expected(model))
