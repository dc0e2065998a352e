"""The converted classes of every family: the original's function, saved, loaded and generating."""

import pickle

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.support.tiny_families import FAMILIES, HYBRIDS
from vllm_mha2mla.config import CONSTANTS
from vllm_mha2mla.hf.registration import MODELS

IDS = torch.randint(0, 256, (2, 24), generator=torch.Generator().manual_seed(0))
VARIANTS = {"gqa": 2, "mqa": 1, "mha": 4}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return FAMILIES[request.param]


@pytest.fixture(scope="module")
def saved(family, tmp_path_factory):
    original = family.original()
    return original, family.save(tmp_path_factory.mktemp(family.name), original)


def test_every_family_has_a_tiny_model():
    tiny = (FAMILIES | HYBRIDS).values()
    assert {family.converted_class for family in tiny} == set(MODELS.values())


@torch.no_grad()
@pytest.mark.parametrize("variant", VARIANTS)
def test_latent_attention_can_be_the_original(family, variant):
    original = family.original(num_key_value_heads=VARIANTS[variant])
    # The same numbers in float32, summed in another order.
    torch.testing.assert_close(
        family.latent(original)(IDS).logits, original(IDS).logits, rtol=0, atol=1e-4
    )


@torch.no_grad()
def test_loaded_again_it_generates_the_same_with_and_without_a_cache(saved):
    original, folder = saved
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    torch.testing.assert_close(model(IDS).logits, original(IDS).logits, rtol=0, atol=1e-4)
    asked = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    expected = original.generate(IDS, **asked)
    assert torch.equal(model.generate(IDS, **asked), expected)
    assert torch.equal(model.generate(IDS, use_cache=False, **asked), expected)


def test_constants_stay_in_float32(saved):
    model = AutoModelForCausalLM.from_pretrained(saved[1], dtype=torch.bfloat16)
    constants = [x for name, x in model.named_buffers() if name.endswith(CONSTANTS)]
    assert len(constants) == len(model.model.layers)
    assert all(x.dtype == torch.float32 for x in constants)


def test_attentions_can_be_asked_for(saved):
    model = AutoModelForCausalLM.from_pretrained(saved[1], attn_implementation="eager").eval()
    attentions = model(IDS, output_attentions=True).attentions
    assert [weights.shape for weights in attentions] == 2 * [(2, 4, 24, 24)]


@pytest.mark.parametrize("config_class", MODELS)
def test_classes_are_found_where_they_are_named(config_class):
    causal_lm = MODELS[config_class]
    for made in (config_class, causal_lm, causal_lm.decoder_class):
        assert pickle.loads(pickle.dumps(made)) is made
        assert made.__module__.startswith("vllm_mha2mla.hf.")
    assert causal_lm.config_class is config_class
