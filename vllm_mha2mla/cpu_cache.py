"""The size of the KV cache on CPUs where the user has not chosen one.

vLLM takes 92 % of the machine's memory then, and refuses to start where other programs use more
than the rest.
"""

import logging
import os

import torch
from vllm.config import CacheConfig, VllmConfig
from vllm.utils.cpu_resource_utils import get_memory_node_info, get_visible_memory_node

from vllm_mha2mla.attention.pages import cached_bytes
from vllm_mha2mla.hf.registration import MODELS
from vllm_mha2mla.memory import ENGINE_BYTES, GIB, cache_bytes, free_bytes
from vllm_mha2mla.padding import cache_bytes_per_token

# vLLM shows the log lines of loggers below its own name.
logger = logging.getLogger("vllm.mha2mla")

CACHE_VARIABLE = "VLLM_CPU_KVCACHE_SPACE"
# Tokens per block on CPUs by default, and the most a request wastes in its last.
BLOCK = 128


def choose_cache_size(vllm_config: VllmConfig) -> None:
    """Set ``kv_cache_memory_bytes`` by what is free, unless the user has chosen, and log it.

    An explicit ``--gpu-memory-utilization`` of exactly vLLM's default cannot be told from none.

    Raises:
        EngineMemoryError: weights and engine alone need more than is free.
    """
    cache = vllm_config.cache_config
    if (
        cache.kv_cache_memory_bytes is not None
        or cache.gpu_memory_utilization != CacheConfig.gpu_memory_utilization
        or os.environ.get(CACHE_VARIABLE)
    ):
        return
    free, weights = _free_per_worker(vllm_config), _weights_per_worker(vllm_config)
    one = _request_bytes(vllm_config)
    size = cache_bytes(free, weights, one, one * vllm_config.scheduler_config.max_num_seqs)
    cache.kv_cache_memory_bytes = size
    logger.info(
        "mha2mla: KV cache of %.2f GiB (%.2f GiB of memory are free; weights take %.2f GiB, the "
        "engine about %.2f GiB, and the rest is left to other programs); "
        "--kv-cache-memory-bytes sets another size",
        *(size / GIB, free / GIB, weights / GIB, ENGINE_BYTES / GIB),
    )


def _free_per_worker(vllm_config: VllmConfig) -> int:
    parallel = vllm_config.parallel_config
    workers = parallel.local_world_size * max(1, parallel.data_parallel_size_local)
    nodes = get_visible_memory_node() or [0]
    # Each worker uses one memory node, and vLLM refuses a cache larger than is free there.
    fullest: int = min(get_memory_node_info(node).available_memory for node in nodes)
    per_worker: int = fullest * min(len(nodes), workers) // workers
    machine = free_bytes()
    return per_worker if machine is None else min(per_worker, machine // workers)


def _weights_per_worker(vllm_config: VllmConfig) -> int:
    model = vllm_config.model_config
    with torch.device("meta"):
        whole = MODELS[type(model.hf_config)](model.hf_config)
    numbers: int = sum(parameter.numel() for parameter in whole.parameters())
    per_worker: int = numbers * model.dtype.itemsize // vllm_config.parallel_config.world_size
    return per_worker


def _request_bytes(vllm_config: VllmConfig) -> int:
    """Cache of one request of the full length, and of the block that vLLM keeps for itself."""
    rows, kept = cached_bytes(vllm_config)
    model, scheduler = vllm_config.model_config, vllm_config.scheduler_config
    tokens: int = model.max_model_len + 2 * BLOCK
    latent = tokens * cache_bytes_per_token(rows, kept)
    if all(rows):
        return latent
    # Layers that keep the source's attention cache a window, and the tokens of a step.
    seen = model.hf_config.sliding_window + scheduler.max_num_batched_tokens + 2 * BLOCK
    return latent + rows.count(0) * kept * int(min(tokens, seen))
