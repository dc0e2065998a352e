"""Configurations that are refused before anything is loaded, on each kind of machine."""

import json
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("vllm")

from vllm.config import CompilationConfig, KVTransferConfig

from vllm_mha2mla import engine_config, plugin
from vllm_mha2mla.engine_config import ATTENTION_OP, LatentModelConfig
from vllm_mha2mla.errors import CheckpointError, UnsupportedEngineError
from vllm_mha2mla.hf.llama import LlamaMLAConfig
from vllm_mha2mla.hf.mistral import MistralMLAConfig
from vllm_mha2mla.hf.olmo3 import Olmo3MLAConfig


def machine(monkeypatch, kind, capability=90):
    platform = SimpleNamespace(
        device_name=kind,
        is_cpu=lambda: kind == "cpu",
        is_cuda=lambda: kind == "cuda",
        has_device_capability=lambda least: capability >= least,
        get_device_name=lambda: "a GPU",
    )
    monkeypatch.setattr(engine_config, "current_platform", platform)
    monkeypatch.setattr(engine_config, "choose_cache_size", lambda _: None)


NIXL = {"kv_connector": "NixlConnector"}
BOTH = {"connectors": [{"kv_connector": "ExampleConnector"}, NIXL]}
WINDOW = "sliding_attention"
CODED = {
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 0,
    "row_bits_per_layer": [[4, 2], [3, 1]],
}


def settings(
    option=None,
    cache_dtype="auto",
    context_parallel=1,
    block_size=128,
    config_class=LlamaMLAConfig,
    max_model_len=8192,
    offloading=None,
    transfer=None,
    prefill_parallel=1,
    micro_batches=False,
    weights_offloaded=(0, 0),
    backend=None,
    stages=1,
    experts_apart=False,
    eager=False,
    model="org/name",
    **keys,
):
    config = config_class(**{"num_hidden_layers": 2, "max_position_embeddings": 8192} | keys)
    if option:
        config.update({"mha2mla_attention": option})
    return SimpleNamespace(
        model_config=SimpleNamespace(
            model=model,
            hf_config=config,
            dtype=torch.bfloat16,
            max_model_len=max_model_len,
            hf_overrides={},
            hf_config_path=None,
            enforce_eager=eager,
        ),
        cache_config=SimpleNamespace(
            cache_dtype=cache_dtype, block_size=block_size, kv_offloading_size=offloading
        ),
        kv_transfer_config=transfer and KVTransferConfig(**transfer, kv_role="kv_both"),
        parallel_config=SimpleNamespace(
            decode_context_parallel_size=context_parallel,
            prefill_context_parallel_size=prefill_parallel,
            pipeline_parallel_size=stages,
            enable_expert_parallel=experts_apart,
            use_ubatching=micro_batches,
            worker_cls="auto",
        ),
        offload_config=SimpleNamespace(
            uva=SimpleNamespace(cpu_offload_gb=weights_offloaded[0]),
            prefetch=SimpleNamespace(offload_group_size=weights_offloaded[1]),
        ),
        attention_config=SimpleNamespace(backend=backend),
    )


@pytest.mark.parametrize(
    ("kind", "asked", "words"),
    [
        ("rocm", {}, "serves on CPUs and NVIDIA GPUs in this release, not on rocm"),
        ("cpu", {"option": "flash"}, "mha2mla_attention flash: CPUs have one way"),
        (
            "cpu",
            {"block_size": 12} | CODED,
            "--block-size 12: coded rows are stored in groups of 8",
        ),
        (
            "cpu",
            {"config_class": MistralMLAConfig, "sliding_window": 4096},
            "sliding_window 4096: .* over the whole context alone; give --max-model-len 4096",
        ),
        (
            "cuda",
            {"config_class": Olmo3MLAConfig, "layer_types": ["full_attention", WINDOW]},
            "sliding_window 4096",
        ),
        ("cuda", {"cache_dtype": "fp8"}, "--kv-cache-dtype fp8: the checkpoint itself says"),
        ("cuda", {"cache_dtype": "float16"}, "on GPUs the cache has the model's dtype"),
        (
            "cuda",
            {"option": "vllm"} | CODED,
            "mha2mla_attention vllm: vLLM's own layer does not read coded rows",
        ),
        ("cuda", {"context_parallel": 2}, "--decode-context-parallel-size"),
        ("cuda", {"prefill_parallel": 2}, "--prefill-context-parallel-size"),
        ("cuda", {"micro_batches": True}, "--enable-dbo, --ubatch-size"),
        ("cuda", {"weights_offloaded": (4, 0)}, "--cpu-offload-gb"),
        ("cuda", {"weights_offloaded": (0, 2)}, "--offload-group-size"),
        ("cpu", {"experts_apart": True}, "--enable-expert-parallel"),
        ("cpu", {"stages": 2, "eager": True}, "leave --enforce-eager out"),
        ("cpu", {"backend": "CPU_ATTN"}, "--attention-backend: a converted model has"),
        ("cpu", {"max_position_embeddings": 4096}, "8192 tokens .* are for 4096 tokens"),
        ("cuda", {"offloading": 4}, "--kv-offloading-size"),
        ("cuda", {"transfer": NIXL}, "NixlConnector has not been run with latent caches"),
        (
            "cuda",
            {"transfer": {"kv_connector": "MultiConnector", "kv_connector_extra_config": BOTH}},
            "NixlConnector has not been run with latent caches",
        ),
        ("cuda", {"option": "fast"}, "'fast': choose one of auto"),
        ("cuda", {"option": "vllm", "kv_lora_rank": 192}, "vLLM's MLA layer serves 512"),
    ],
)
def test_refused(monkeypatch, kind, asked, words):
    machine(monkeypatch, kind)
    with pytest.raises(UnsupportedEngineError, match=words):
        LatentModelConfig.verify_and_update_config(settings(**asked))


def test_invariance_to_the_batch_is_refused(monkeypatch):
    machine(monkeypatch, "cuda")
    monkeypatch.setenv("VLLM_BATCH_INVARIANT", "1")
    with pytest.raises(UnsupportedEngineError, match="VLLM_BATCH_INVARIANT"):
        LatentModelConfig.verify_and_update_config(settings())


def test_old_gpus_are_refused(monkeypatch):
    machine(monkeypatch, "cuda", capability=75)
    with pytest.raises(UnsupportedEngineError, match="from compute capability 8"):
        LatentModelConfig.verify_and_update_config(settings())


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_accepted(monkeypatch, kind):
    machine(monkeypatch, kind)
    LatentModelConfig.verify_and_update_config(settings())
    LatentModelConfig.verify_and_update_config(settings(cache_dtype="bfloat16"))
    full = {"config_class": Olmo3MLAConfig, "layer_types": ["full_attention"] * 2}
    LatentModelConfig.verify_and_update_config(settings(**full))
    short = {"config_class": MistralMLAConfig, "sliding_window": 4096, "max_model_len": 4096}
    LatentModelConfig.verify_and_update_config(settings(**short))
    stretched = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}
    longer = {"max_position_embeddings": 4096, "rope_parameters": stretched}
    LatentModelConfig.verify_and_update_config(settings(**longer))
    own = {"kv_connector": "Mine", "kv_connector_module_path": "mine"}
    for transfer in ({"kv_connector": "ExampleConnector"}, own):
        LatentModelConfig.verify_and_update_config(settings(transfer=transfer))


def test_cost_of_padding_is_told(monkeypatch, caplog):
    machine(monkeypatch, "cuda")
    monkeypatch.setattr(engine_config.logger, "propagate", True)
    with caplog.at_level("INFO", logger=engine_config.logger.name):
        LatentModelConfig.verify_and_update_config(settings())
        assert not caplog.messages
        LatentModelConfig.verify_and_update_config(settings(kv_lora_rank=189, qk_rope_head_dim=60))
    assert "512 numbers a token instead of 498, 2.8 % more cache" in caplog.messages[0]


def test_registering_twice_splits_graphs_at_attention_once():
    plugin.register()
    plugin.register()
    assert CompilationConfig._attention_ops.count(ATTENTION_OP) == 1


@pytest.mark.parametrize(
    ("version", "disabled", "words"),
    [
        ("0.31.1", None, "vllm 0.31.1: a cache of sliding windows and latents"),
        ("0.32.0", True, "--disable-hybrid-kv-cache-manager: some layers"),
        ("0.32.0", None, None),
    ],
)
def test_beside_layers_that_keep_a_window(monkeypatch, version, disabled, words):
    machine(monkeypatch, "cpu")
    monkeypatch.setattr(type(engine_config.VLLM_WITH_KEPT_LAYERS), "installed", version)
    made = settings(
        config_class=Olmo3MLAConfig,
        layer_types=["full_attention", WINDOW],
        kv_lora_rank_per_layer=[64, 0],
        qk_rope_head_dim_per_layer=[32, 0],
    )
    made.scheduler_config = SimpleNamespace(disable_hybrid_kv_cache_manager=disabled)
    if words is None:
        LatentModelConfig.verify_and_update_config(made)
        return
    with pytest.raises(UnsupportedEngineError, match=words):
        LatentModelConfig.verify_and_update_config(made)


def test_two_sets_of_weights_are_refused(monkeypatch, tmp_path):
    machine(monkeypatch, "cpu")
    (tmp_path / "model.safetensors").write_bytes(b"")
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="holds two models"):
        LatentModelConfig.verify_and_update_config(settings(model=str(tmp_path)))
