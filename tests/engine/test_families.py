"""Every family in the engine, which gives the tokens of transformers.

Some are the original's function, written as latent attention, and are compared with the original.
The others are converted to half of the cache, and one to coded rows: they are compared with what
transformers makes of the same checkpoint.
"""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.support.convert import convert_tiny
from tests.support.engine import assert_same_greedy, greedy, run_engines
from tests.support.tiny import tiny_tokenizer
from tests.support.tiny_engine import random_prompts, tiny_engine
from tests.support.tiny_families import FAMILIES

pytestmark = pytest.mark.slow

PROMPTS = random_prompts((1, 17, 40))
NEW_TOKENS = 16
# As good as another family's: Ministral as Mistral, OLMo-3 as OLMo-2; test_start.py has Llama.
WHOLE = ("Qwen2", "Mistral", "Phi3", "Granite", "SmolLM3", "Gemma", "Qwen3Moe", "Olmoe")
HALF = ("Qwen3", "Olmo2", "Mixtral", "Cohere")
CODED = "coded Qwen3"
EXCHANGED = "Qwen3"


def engine(folder, **changes):
    made = tiny_engine(folder, PROMPTS, 16, kv_cache_memory_bytes=1 << 20, **changes)
    made["steps"][0]["sampling"] = made["steps"][0]["sampling"] | {"max_tokens": NEW_TOKENS}
    return made


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A checkpoint of each family, and the model in transformers that gives the same."""
    folder, found = tmp_path_factory.mktemp("families"), {}
    for name in WHOLE:
        original = FAMILIES[name].original()
        found[name] = (FAMILIES[name].save(folder / name, original), original)
    for name in HALF:
        source, out = folder / name / "source", folder / name / "half"
        FAMILIES[name].original().save_pretrained(source)
        tiny_tokenizer().save_pretrained(source)
        found[name] = (out, convert_tiny(source, out, cache_fraction=0.5, bits=16))
    source, out = folder / "Qwen3" / "source", folder / "Qwen3" / "coded"
    found[CODED] = (out, convert_tiny(source, out, cache_fraction=0.3, bits="auto"))
    return found


@pytest.fixture(scope="module")
def exchanged(models, tmp_path_factory):
    """The checkpoint of one family with other matrices."""
    folder = tmp_path_factory.mktemp("exchanged") / "checkpoint"
    shutil.copytree(models[EXCHANGED][0], folder)
    weights = load_file(folder / "model.safetensors")
    weights = {name: 1.25 * w if w.dim() == 2 else w for name, w in weights.items()}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def runs(models, exchanged):
    engines = {
        name: engine(folder, enforce_eager=name != CODED) for name, (folder, _) in models.items()
    }
    (plain,) = engines[EXCHANGED]["steps"]
    engines[EXCHANGED]["steps"].append(plain | {"weights": str(exchanged)})
    return dict(zip(models, run_engines(*engines.values()), strict=True))


@pytest.mark.parametrize("name", [*WHOLE, *HALF, CODED])
def test_same_tokens_as_transformers(runs, models, name):
    _, model = models[name]
    outputs = runs[name]["steps"][0]["outputs"]
    assert_same_greedy(outputs, [greedy(model, prompt, NEW_TOKENS) for prompt in PROMPTS])


def test_weights_exchanged_in_the_running_engine(runs, exchanged):
    model = AutoModelForCausalLM.from_pretrained(exchanged, dtype=torch.float32)
    outputs = runs[EXCHANGED]["steps"][1]["outputs"]
    assert_same_greedy(outputs, [greedy(model, prompt, NEW_TOKENS) for prompt in PROMPTS])
