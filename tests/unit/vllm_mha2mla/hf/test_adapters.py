"""PEFT's adapters on converted models: each has its effect, or is refused."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.support.tiny_converted import save_tiny_converted
from tests.support.tiny_families import FAMILIES
from vllm_mha2mla.errors import CheckpointError

peft = pytest.importorskip("peft")
IDS = torch.arange(12)[None]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_converted(tmp_path_factory.mktemp("converted"))


@pytest.fixture(scope="module")
def qk_norm(tmp_path_factory):
    tiny = FAMILIES["Qwen3"]
    return tiny.save(tmp_path_factory.mktemp("qk-norm"), tiny.original())


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def lora(targets, **changes):
    return peft.LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM", **changes)


def draw(adapted):
    """Give every adapter weights that matter."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)


@pytest.mark.parametrize("which", ["folder", "qk_norm"])
def test_all_linear_layers_learn(which, request):
    model = peft.get_peft_model(load(request.getfixturevalue(which)), lora("all-linear"))
    draw(model)
    model(input_ids=IDS, labels=IDS).loss.backward()
    adapters = {n: p for n, p in model.named_parameters() if "lora_" in n and p.numel()}
    # With one latent, scores of a layer without RoPE still depend on all of its projections.
    assert any("kv_b_proj" in name for name in adapters)
    still = [name for name, p in adapters.items() if p.grad is None or not p.grad.any()]
    assert not still


@pytest.mark.parametrize("which", ["folder", "qk_norm"])
def test_merged_the_adapters_do_the_same(which, request, tmp_path):
    model = peft.get_peft_model(load(request.getfixturevalue(which)), lora("all-linear")).eval()
    with torch.no_grad():
        before = model(IDS).logits
        draw(model)
        adapted = model(IDS).logits
        model.save_pretrained(tmp_path)
        again = peft.PeftModel.from_pretrained(load(request.getfixturevalue(which)), tmp_path)
        torch.testing.assert_close(again(IDS).logits, adapted)
        merged = model.merge_and_unload()(IDS).logits
    assert (adapted - before).abs().max() > 0.1
    torch.testing.assert_close(merged, adapted, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def of_the_original(tmp_path_factory):
    """Adapters of the model that the tiny converted one could have come from, by target."""
    folder = tmp_path_factory.mktemp("adapters")
    for target in ("q_proj", "v_proj"):
        original = FAMILIES["Llama"].original(num_hidden_layers=5)
        adapted = peft.get_peft_model(original, lora([target, "gate_proj"]))
        draw(adapted)
        adapted.save_pretrained(folder / target)
    return folder


def test_queries_of_the_original_are_refused(folder, of_the_original):
    with pytest.raises(CheckpointError, match=r"made for the original; merge .* then convert"):
        peft.PeftModel.from_pretrained(load(folder), of_the_original / "q_proj")


def test_queries_of_the_original_are_refused_by_transformers(folder, of_the_original):
    with pytest.raises(CheckpointError, match="made for the original"):
        load(folder).load_adapter(str(of_the_original / "q_proj"))


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], r".*\.(q|k)_proj"])
def test_targets_that_are_no_more_are_refused(folder, targets):
    with pytest.raises(ValueError, match="a converted model has no such projection"):
        peft.get_peft_model(load(folder), lora(targets))


def test_values_of_the_original_are_refused(folder, of_the_original):
    with pytest.raises(ValueError, match="a converted model has no such projection"):
        peft.PeftModel.from_pretrained(load(folder), of_the_original / "v_proj")


def test_values_of_a_model_with_qk_norm_are_still_there(qk_norm):
    original = peft.get_peft_model(FAMILIES["Qwen3"].original(), lora(["q_proj", "v_proj"])).eval()
    converted = peft.get_peft_model(load(qk_norm), lora(["q_proj", "v_proj"])).eval()
    draw(original)
    draw(converted)
    weights = {n: p for n, p in original.state_dict().items() if "lora_" in n}
    converted.load_state_dict(weights, strict=False)
    with torch.no_grad():
        expected = original(IDS).logits
        torch.testing.assert_close(converted(IDS).logits, expected, rtol=1e-4, atol=1e-4)
