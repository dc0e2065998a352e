"""RoPE and the context of a converted checkpoint, where others are asked for."""

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.support.tiny_converted import save_tiny_converted
from vllm_mha2mla.config import LATENT_KEYS
from vllm_mha2mla.errors import CheckpointError, UnsupportedEngineError
from vllm_mha2mla.hf.make import LatentKeys

LENGTH = 512
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
REFUSED = {
    "yarn": {"rope_parameters": YARN | {"rope_theta": 10000.0}},
    "the old name": {"rope_scaling": YARN},
    "base": {"rope_theta": 5e5},
    "a part": {"partial_rotary_factor": 0.5},
    "length": {"max_position_embeddings": 2048},
}
SERVED = {
    "shorter": {"max_position_embeddings": 256},
    "the same": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    "another key": {"rms_norm_eps": 1e-5},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_converted(tmp_path_factory.mktemp("converted"))


def model_config(folder, overrides):
    """A model's configuration in vLLM, with the overrides applied by vLLM."""
    pytest.importorskip("vllm")
    from vllm.transformers_utils.config import get_config

    given = {"hf_overrides_fn" if callable(overrides) else "hf_overrides_kw": overrides}
    config = get_config(str(folder), False, **given)
    return SimpleNamespace(
        hf_config=config, hf_overrides=overrides, hf_config_path=None, model=str(folder),
        trust_remote_code=False, revision=None, max_model_len=config.max_position_embeddings,
    )  # fmt: skip


def refuse(model):
    from vllm_mha2mla.overrides import refuse_overrides

    refuse_overrides(model)


@pytest.mark.parametrize("name", REFUSED)
def test_the_engine_refuses_what_would_have_no_effect(folder, name):
    model = model_config(folder, REFUSED[name])
    with pytest.raises(UnsupportedEngineError, match="convert again"):
        refuse(model)


@pytest.mark.parametrize("name", SERVED)
def test_the_engine_serves_the_rest(folder, name):
    refuse(model_config(folder, SERVED[name]))


@pytest.mark.parametrize("overrides", [{"kv_lora_rank": 8}, {"attention_scale": 1.0}], ids=str)
def test_keys_that_describe_the_weights_are_refused(folder, overrides):
    (key,) = overrides
    with pytest.raises(UnsupportedEngineError, match=f"{key} describes the weights"):
        refuse(model_config(folder, overrides))


def test_every_key_of_a_converted_model_is_one_of_them():
    assert set(LATENT_KEYS) == LatentKeys.__annotations__.keys() - {"source_type"}


def test_a_function_is_an_override_too(folder):
    def change(config):
        config.rope_parameters = REFUSED["yarn"]["rope_parameters"]
        return config

    model = model_config(folder, change)
    with pytest.raises(UnsupportedEngineError, match="rope_parameters cannot be changed"):
        refuse(model)


def test_a_longer_request_than_the_sources_is_refused(folder):
    model = model_config(folder, {})
    model.max_model_len = LENGTH + 1  # as VLLM_ALLOW_LONG_MAX_MODEL_LEN lets through
    with pytest.raises(UnsupportedEngineError, match="a context of 513 tokens"):
        refuse(model)


@pytest.mark.parametrize("name", REFUSED)
def test_transformers_refuses_what_would_have_no_effect(folder, name):
    for load in (AutoConfig, AutoModelForCausalLM):
        with pytest.raises(CheckpointError, match="convert again"):
            load.from_pretrained(folder, **REFUSED[name])


def test_transformers_loads_with_other_keys(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_cache=False)
    assert not model.config.use_cache
