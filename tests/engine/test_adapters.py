"""LoRA adapters in the engine: those of the converted model act, others are refused."""

import re

import pytest
import torch
from transformers import AutoModelForCausalLM

from conversion.checkpoint.loading import load_converted
from tests.support.engine import assert_same_greedy, greedy, refusals, run_engines
from tests.support.tiny_engine import NEW_TOKENS, random_prompts, tiny_engine
from tests.support.tiny_families import FAMILIES

peft = pytest.importorskip("peft")
LENGTHS = (1, 17, 40)
SERVED = {
    "plain": ("q_proj", "kv_a_proj_with_mqa", "o_proj", "gate_proj", "down_proj"),
    "compressed queries": ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa"),
    "qk-norm": ("q_proj", "k_proj", "v_proj", "kv_a_proj_with_mqa"),
}


@pytest.fixture(scope="module")
def checkpoints(tiny_checkpoint, tiny_query_checkpoint, tmp_path_factory):
    tiny = FAMILIES["Qwen3"]
    normed = tiny.save(tmp_path_factory.mktemp("qk-norm"), tiny.original())
    return dict(zip(SERVED, (tiny_checkpoint, tiny_query_checkpoint, normed), strict=True))


def adapt(model, targets, folder):
    """Save an adapter of random weights; return the model with it."""
    config = peft.LoraConfig(r=8, target_modules=list(targets), task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(model, config)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    adapted.save_pretrained(folder)
    return adapted


def engine(checkpoint, prompts, adapter):
    specification = tiny_engine(checkpoint, prompts, 16, enable_lora=True, max_lora_rank=8)
    plain = specification["steps"][0]
    return specification | {"steps": [plain, plain | {"adapter": str(adapter)}]}


def test_adapters_of_the_converted_model_act(checkpoints, tmp_path):
    prompts = random_prompts(LENGTHS)
    for name, targets in SERVED.items():
        adapt(load_converted(checkpoints[name], torch.float32)[0], targets, tmp_path / name)
    results = run_engines(
        *(engine(checkpoints[name], prompts, tmp_path / name) for name in checkpoints)
    )
    for name, result in zip(checkpoints, results, strict=True):
        model = load_converted(checkpoints[name], torch.float32)[0]
        plain, adapted = result["steps"]
        assert_same_greedy(plain["outputs"], [greedy(model, p, NEW_TOKENS) for p in prompts])
        merged = peft.PeftModel.from_pretrained(model, tmp_path / name).merge_and_unload()
        references = [greedy(merged, p, NEW_TOKENS) for p in prompts]
        assert [r.tokens for r in references] != [o["tokens"] for o in plain["outputs"]]
        assert_same_greedy(adapted["outputs"], references)


def test_other_adapters_are_refused(tiny_checkpoint, tmp_path):
    original = FAMILIES["Llama"].original
    adapt(original(num_hidden_layers=5), ["q_proj", "gate_proj"], tmp_path / "queries")
    adapt(original(num_hidden_layers=5), ["v_proj"], tmp_path / "values")
    converted = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    adapt(converted, ["kv_b_proj", "up_proj"], tmp_path / "read")
    prompts = random_prompts((4,))
    names = ("queries", "values", "read")
    errors = refusals(*(engine(tiny_checkpoint, prompts, tmp_path / name) for name in names))
    merge = "made for the original.* merge the adapter into the original, then convert that"
    for error, words in zip(errors, (merge, merge, "kv_b_proj are not served"), strict=True):
        assert re.search(words, error), error
