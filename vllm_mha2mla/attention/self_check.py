"""The start-up self-check of the engine's layers, on the cache that it has bound.

A miscompiled kernel, a wrong instruction set or a cache of another layout than a kernel believes
would give wrong answers without a word. The engine does not start then.
"""

import logging
import os
import time
from collections.abc import Hashable, Sequence
from functools import partial
from importlib import metadata
from typing import TYPE_CHECKING, Any

import torch
import vllm
from torch import Tensor
from vllm.config import VllmConfig
from vllm.forward_context import create_forward_context, override_forward_context
from vllm.platforms import current_platform
from vllm.v1.attention.backend import AttentionMetadataBuilder, CommonAttentionMetadata

from vllm_mha2mla.errors import SelfCheckError
from vllm_mha2mla.kernels.cpu import ISA_VARIABLE, CpuLayer
from vllm_mha2mla.kernels.cuda.choose import OPTION
from vllm_mha2mla.self_check.check import Mismatch, check
from vllm_mha2mla.self_check.reference import Subject
from vllm_mha2mla.self_check.requests import Batch
from vllm_mha2mla.version import __version__

if TYPE_CHECKING:
    from vllm_mha2mla.attention.layer import LatentCacheAttention

# vLLM shows the log lines of loggers below its own name.
logger = logging.getLogger("vllm.mha2mla")

VARIABLE = "VLLM_MHA2MLA_SELF_CHECK"
"""Environment variable; ``0`` turns the self-check off."""


def check_layers(layers: Sequence["LatentCacheAttention"], vllm_config: VllmConfig) -> None:
    """Check one layer of each kind that there is on this rank, and log the time that it took.

    Args:
        layers: of the engine, with their caches; these are afterwards as they were before.
        vllm_config: of the engine.

    Raises:
        SelfCheckError: a layer does not compute what it should.
    """
    if os.environ.get(VARIABLE) == "0":
        logger.warning("mha2mla: the self-check is off: wrong kernels would not be found")
        return
    started = time.perf_counter()
    kinds: dict[Hashable, LatentCacheAttention] = {}
    for layer in layers:
        kinds.setdefault(_kind(layer), layer)
    with torch.inference_mode():
        for layer in kinds.values():
            mismatch = _check_layer(layer, vllm_config)
            if mismatch is not None:
                raise SelfCheckError(_report(layer, mismatch))
    logger.info(
        "mha2mla: the self-check of %d kinds of layer found no error, in %.2f s",
        *(len(kinds), time.perf_counter() - started),
    )


def _kind(layer: "LatentCacheAttention") -> Hashable:
    """All that a kernel's path through a layer depends on."""
    cache, code = layer.kv_cache, layer.coded and layer.coded.code
    # Where rows begin relative to a cache line or a vector.
    layout = (cache.dtype, cache.shape, cache.stride(), cache.data_ptr() % 64)
    weights = [(w.dtype, w.shape, w.stride()) for w in layer.weights[0]()]
    return (layer.widths, code, layout, *weights)


def _check_layer(layer: "LatentCacheAttention", vllm_config: VllmConfig) -> Mismatch | None:
    up, inv_freq = layer.weights
    w_uk, w_uv = up()
    subject = Subject(
        layer.kv_cache.squeeze(1),
        w_uk,
        w_uv,
        inv_freq.data,
        layer.scale,
        up.num_heads,
        layer.widths,
        layer.coded,
        layer.step.isa if isinstance(layer.step, CpuLayer) else None,
        vllm_config.model_config.max_model_len,
    )
    make_builder = layer.backend.get_builder_cls()
    spec = layer.get_kv_cache_spec(vllm_config)
    builder = make_builder(spec, [layer.layer_name], vllm_config, layer.kv_cache.device)
    return check(subject, partial(_compute, layer, vllm_config, builder))


def _compute(
    layer: "LatentCacheAttention",
    vllm_config: VllmConfig,
    builder: AttentionMetadataBuilder[Any],
    query: Tensor,
    rows: Tensor,
    batch: Batch,
) -> Tensor:
    """Run a layer as the engine does: see ``check.Compute``."""
    device = layer.kv_cache.device
    starts, lengths = batch.starts, batch.lengths
    common = CommonAttentionMetadata(
        query_start_loc=starts.to(device),
        query_start_loc_cpu=starts,
        seq_lens=lengths.to(device),
        seq_lens_cpu_upper_bound=lengths,
        num_reqs=len(lengths),
        num_actual_tokens=batch.tokens,
        max_query_len=int(starts.diff().max()),
        max_seq_len=int(lengths.max()),
        block_table_tensor=batch.table.to(device),
        slot_mapping=batch.slots.to(device),
    )
    context = create_forward_context({layer.layer_name: builder.build(0, common)}, vllm_config)
    widths = [query.shape[1], rows.shape[1]]
    if layer.gpu is None or any(width % 8 for width in widths):
        query, rows = query.to(device), rows.to(device)
    else:
        # Of one product (``joined.py``).
        query, rows = torch.cat((query, rows), dim=-1).to(device).split(widths, dim=-1)
    with override_forward_context(context):
        out: Tensor = layer(query, rows, batch.positions.to(device))
    return out


def _report(layer: "LatentCacheAttention", mismatch: Mismatch) -> str:
    cache, widths = layer.kv_cache, layer.widths
    if layer.gpu is not None:
        ways, gpu = layer.gpu.ways, current_platform.get_device_name()
        kernel = f"decode by {ways.decode}, prefill by {ways.prefill}, on {gpu}"
        other = "flash" if ways.decode == "triton" else "triton"
        way_out = f"""--hf-overrides '{{"{OPTION}": "{other}"}}'"""
        if layer.coded:
            way_out = "--kv-cache-dtype bfloat16"
    elif isinstance(layer.step, CpuLayer):
        kernel = f"the CPU kernel for {layer.step.isa}"
        way_out = f"{ISA_VARIABLE}=portable, or another compiler in CXX,"
    else:
        kernel, way_out = "PyTorch", "another version of PyTorch"
    stored = f"{layer.row} bytes" if layer.coded else f"{layer.row} numbers of {cache.dtype}"
    weights = layer.weights[0].weight.dtype
    versions = [
        f"vllm-mha2mla {__version__}",
        f"vllm {vllm.__version__}",
        f"torch {torch.__version__}",
    ]
    if layer.gpu is not None:
        versions.append(f"triton {metadata.version('triton')}")
    return (
        f"self-check: {layer.layer_name} computes wrong results: {mismatch.found} of "
        f"{mismatch.case} is off by {mismatch.error:.3g} of its size, {mismatch.allowed:.3g} is "
        f"allowed ({kernel}; rows {widths.kv_lora_rank}+{widths.qk_rope_head_dim} as {stored}, "
        f"cache {list(cache.shape)} with strides {list(cache.stride())}, {weights}; "
        f"{', '.join(versions)}); {way_out} may help; please report this line. {VARIABLE}=0 starts "
        "the engine all the same"
    )
