"""The checks and defaults that vLLM's configuration gets for our architectures."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vllm.config import CompilationConfig, VllmConfig
from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig
from vllm.platforms import current_platform
from vllm.utils.torch_utils import kv_cache_dtype_str_to_dtype

from vllm_mha2mla.attention.connectors import refuse_connectors
from vllm_mha2mla.attention.native_config import refuse_other_sizes, register_convertor
from vllm_mha2mla.coding.row_code import UNIT, row_codes, served_codes
from vllm_mha2mla.config import FULL, latent_widths
from vllm_mha2mla.cpu_cache import choose_cache_size
from vllm_mha2mla.errors import UnsupportedEngineError
from vllm_mha2mla.hf.registration import MODELS
from vllm_mha2mla.kernels.cuda.choose import OPTION, option_of
from vllm_mha2mla.overrides import refuse_overrides
from vllm_mha2mla.padding import padded_width
from vllm_mha2mla.refused_options import refuse_options
from vllm_mha2mla.two_sets import refuse_two_sets
from vllm_mha2mla.versions import VLLM_WITH_KEPT_LAYERS

# vLLM shows the log lines of loggers below its own name.
logger = logging.getLogger("vllm.mha2mla")

ATTENTION_OP = "vllm::mha2mla_attention"
CPU_WORKER = "vllm_mha2mla.cpu_worker.LatentCPUWorker"
OLDEST_GPU = 80
"""Compute capability, times ten, of the first GPUs with bfloat16 (Ampere)."""


class LatentModelConfig(VerifyAndUpdateConfig):
    """Refuses what cannot work before anything is loaded, and sizes the cache."""

    @staticmethod
    def verify_and_update_config(vllm_config: VllmConfig) -> None:
        """Check and complete the configuration, once, before vLLM resolves its own defaults."""
        _refuse_unsupported(vllm_config)
        _refuse_windows(vllm_config.model_config)
        refuse_two_sets(Path(vllm_config.model_config.model))
        refuse_options(vllm_config)
        refuse_overrides(vllm_config.model_config)
        refuse_connectors(vllm_config)
        latent_widths(vllm_config.model_config.hf_config)
        row_codes(vllm_config.model_config.hf_config)
        _refuse_beside_kept_layers(vllm_config)
        if current_platform.is_cpu():
            choose_cache_size(vllm_config)
            _choose_worker(vllm_config)
        elif not _is_coded(vllm_config):
            _tell_padding(vllm_config)


def _choose_worker(vllm_config: VllmConfig) -> None:
    # A worker that the user has chosen stays.
    if vllm_config.parallel_config.worker_cls == "auto":
        vllm_config.parallel_config.worker_cls = CPU_WORKER


def _is_coded(vllm_config: VllmConfig) -> bool:
    config, cache = vllm_config.model_config.hf_config, vllm_config.cache_config
    return served_codes(config, cache.cache_dtype) is not None


def _refuse_unsupported(vllm_config: VllmConfig) -> None:
    option = option_of(vllm_config.model_config.hf_config)
    if current_platform.is_cpu():
        if option != "auto":
            raise UnsupportedEngineError(f"{OPTION} {option}: CPUs have one way; leave it out")
        if vllm_config.parallel_config.enable_expert_parallel:
            raise UnsupportedEngineError(
                "--enable-expert-parallel: vLLM's experts on CPUs crash with it; leave it out"
            )
        stages = vllm_config.parallel_config.pipeline_parallel_size
        if stages > 1 and vllm_config.model_config.enforce_eager:
            raise UnsupportedEngineError(
                "--pipeline-parallel-size with --enforce-eager: vLLM prepares the later stages on "
                "CPUs only where it compiles; leave --enforce-eager out"
            )
    elif current_platform.is_cuda():
        _refuse_on_gpus(vllm_config)
    else:
        raise UnsupportedEngineError(
            "mha2mla serves on CPUs and NVIDIA GPUs in this release, not on "
            f"{current_platform.device_name}; serve the original model there"
        )
    cache_dtype = vllm_config.cache_config.cache_dtype
    if cache_dtype not in ("auto", "bfloat16", "float16"):
        raise UnsupportedEngineError(
            f"--kv-cache-dtype {cache_dtype}: the checkpoint itself says how its cache is coded; "
            "leave the option out, or give bfloat16 for a cache that is not coded"
        )
    block_size = vllm_config.cache_config.block_size
    if _is_coded(vllm_config) and block_size is not None and block_size % UNIT:
        raise UnsupportedEngineError(
            f"--block-size {block_size}: coded rows are stored in groups of {UNIT}; give a "
            "multiple of it, or leave the option out"
        )


def _refuse_windows(model: Any) -> None:
    kinds = getattr(model.hf_config, "layer_types", None)
    window = getattr(model.hf_config, "sliding_window", None)
    layers = zip(latent_widths(model.hf_config), kinds or (), strict=False)
    others = {kind for widths, kind in layers if not widths.kept} - {FULL}
    # A window as long as the longest request hides nothing.
    if (others or kinds is None) and window is not None and window < model.max_model_len:
        raise UnsupportedEngineError(
            f"config.json: sliding_window {window}: latent attention is served over the whole "
            f"context alone; give --max-model-len {window}, or serve the original model"
        )


def _refuse_beside_kept_layers(vllm_config: VllmConfig) -> None:
    if not any(widths.kept for widths in latent_widths(vllm_config.model_config.hf_config)):
        return
    if vllm_config.kv_transfer_config is not None:
        raise UnsupportedEngineError(
            "--kv-transfer-config: connectors have not been run with a cache of sliding windows "
            "and latents; leave it out"
        )
    if vllm_config.scheduler_config.disable_hybrid_kv_cache_manager:
        raise UnsupportedEngineError(
            "--disable-hybrid-kv-cache-manager: some layers of this model cache a window alone; "
            "leave it out"
        )
    vllm = VLLM_WITH_KEPT_LAYERS
    if vllm.place(vllm.installed) == "older":
        raise UnsupportedEngineError(
            f"vllm {vllm.installed}: a cache of sliding windows and latents is served from vLLM "
            f"{vllm.first} on; upgrade vLLM"
        )


def _refuse_on_gpus(vllm_config: VllmConfig) -> None:
    if not current_platform.has_device_capability(OLDEST_GPU):
        raise UnsupportedEngineError(
            "mha2mla serves on NVIDIA GPUs from compute capability 8.0 (Ampere), not on "
            f"{current_platform.get_device_name()}; serve the original model there"
        )
    model, cache_dtype = vllm_config.model_config, vllm_config.cache_config.cache_dtype
    named = cache_dtype in ("bfloat16", "float16")
    if named and kv_cache_dtype_str_to_dtype(cache_dtype, model) != model.dtype:
        raise UnsupportedEngineError(
            f"--kv-cache-dtype {cache_dtype}: on GPUs the cache has the model's dtype; leave the "
            "option out"
        )
    if option_of(model.hf_config) == "vllm":
        if _is_coded(vllm_config):
            raise UnsupportedEngineError(
                f"{OPTION} vllm: vLLM's own layer does not read coded rows; leave the option out, "
                "or give --kv-cache-dtype bfloat16 for a cache that is not coded"
            )
        refuse_other_sizes(model.hf_config)


def _tell_padding(vllm_config: VllmConfig) -> None:
    layers = latent_widths(vllm_config.model_config.hf_config)
    width = sum(widths.width for widths in layers)
    padded = sum(padded_width(widths, "cuda") for widths in layers)
    if padded > width:
        logger.info(
            "mha2mla: rows are padded for this GPU: %d numbers a token instead of %d, %.1f %% more "
            "cache; convert with --target cuda to use them",
            *(padded, width, 100 * (padded / width - 1)),
        )


def register_config_hooks(architectures: Iterable[str]) -> None:
    """Attach the hooks to every architecture of ours. Idempotent."""
    for architecture in architectures:
        MODELS_CONFIG_MAP[architecture] = LatentModelConfig
    for config in MODELS:
        register_convertor(config.model_type)
    # vLLM splits the compiled model at attention, so that its graphs do not hold it.
    if ATTENTION_OP not in CompilationConfig._attention_ops:
        CompilationConfig._attention_ops.append(ATTENTION_OP)
