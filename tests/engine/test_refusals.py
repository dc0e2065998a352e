"""Checkpoints and options that an engine must refuse, in words its user can act on."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.engine import refusals
from tests.support.ropes import yarn
from vllm_mha2mla.config import FORMAT_VERSION

pytestmark = pytest.mark.slow

STRETCHED = yarn(original_max_position_embeddings=512)


@pytest.fixture(scope="module")
def errors(tiny_checkpoint, tmp_path_factory):
    newer = tmp_path_factory.mktemp("newer") / "checkpoint"
    shutil.copytree(tiny_checkpoint, newer)
    config = json.loads((newer / "config.json").read_text())
    config["mha2mla"]["format_version"] = FORMAT_VERSION + 1
    (newer / "config.json").write_text(json.dumps(config))
    rounded = tmp_path_factory.mktemp("rounded") / "checkpoint"
    shutil.copytree(tiny_checkpoint, rounded)
    weights = load_file(rounded / "model.safetensors")
    weights = {name: tensor.to(torch.bfloat16) for name, tensor in weights.items()}
    save_file(weights, rounded / "model.safetensors", {"format": "pt"})
    usual = {
        "model": str(tiny_checkpoint),
        "dtype": "float32",
        "kv_cache_memory_bytes": 1 << 24,
        "max_model_len": 256,
    }
    with ThreadPoolExecutor() as pool:
        plugin = pool.submit(
            refusals,
            {"llm": usual | {"model": str(newer)}},
            {"llm": usual | {"kv_cache_dtype": "fp8"}},
            {"llm": usual | {"model": str(rounded)}},
            {"llm": usual | {"hf_overrides": {"rope_parameters": STRETCHED}}},
        )
        no_plugin = pool.submit(
            refusals,
            {"llm": usual},
            {"llm": usual | {"trust_remote_code": True}},
            VLLM_PLUGINS="",
        )
        names = ("newer format", "fp8 cache", "rounded", "yarn", "no plugin", "no plugin, trusted")
        return dict(zip(names, plugin.result() + no_plugin.result(), strict=True))


def test_newer_format(errors):
    assert (
        f"format_version {FORMAT_VERSION + 1} is newer than this release reads "
        f"({FORMAT_VERSION}); upgrade with: pip install -U vllm-mha2mla"
    ) in errors["newer format"]


def test_quantised_cache(errors):
    message = "--kv-cache-dtype fp8: the checkpoint itself says how its cache is coded"
    assert message in errors["fp8 cache"]


def test_engine_without_the_plugin(errors):
    # Not served as a plain Llama: the model type is one that only the plugin knows.
    assert "Please pass the argument `trust_remote_code=True`" in errors["no plugin"]
    # Then transformers knows it, from the package itself, and the engine finds no attention in it.
    assert "does not dispatch through the Transformers" in errors["no plugin, trusted"]


def test_rounded_frequencies(errors):
    assert "self_attn.rope_inv_freq is stored in bfloat16: rounded" in errors["rounded"]


def test_another_rope(errors):
    assert "--hf-overrides: rope_parameters cannot be changed" in errors["yarn"]
