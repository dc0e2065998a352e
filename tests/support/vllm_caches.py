"""vLLM's own quantised caches on a CPU: writes heads, then lets the last tokens attend to them.

Reads ``{(kv_cache_dtype, width): (query, keys, values)}`` from a file of torch, and writes there
what vLLM's attention makes of each in float32, and its bytes per token: its own Triton kernels fill
a cache and read it, in the interpreter. This is a process of its own because vLLM decides at its
import whether Triton is there.
"""

import os
import sys
from types import SimpleNamespace

import torch

BLOCK = 16


def interpret():
    """Let vLLM's kernels run in Triton's interpreter, on a machine without a GPU."""
    os.environ["TRITON_INTERPRET"] = "1"
    import triton.backends

    # vLLM for CPUs looks for this entry, and takes Triton only if it is there.
    triton.backends.backends["cpu"] = SimpleNamespace(driver=None)
    import vllm.triton_utils

    del triton.backends.backends["cpu"]
    assert vllm.triton_utils.HAS_TRITON
    round_fp8_like_a_gpu()


def round_fp8_like_a_gpu():
    """Let the interpreter round to 8-bit floats as GPUs do: it forgets carries into exponents."""
    from triton import language as tl
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def converted(x, given, wanted, mode):
        if given != tl.float32 or wanted != tl.float8e4nv:
            return convert(x, given, wanted, mode)
        # GPUs saturate, torch does not.
        floats = torch.from_numpy(x.copy()).view(torch.float32).clamp(-448, 448)
        return floats.to(torch.float8_e4m3fn).view(torch.uint8).numpy().reshape(x.shape)

    interpreter._convert_float = converted


def per_tensor(name, query, keys, values):
    from vllm.v1.attention.ops.triton_reshape_and_cache_flash import (
        reshape_and_cache_kernel_flash as store,
    )

    tokens, heads, d = keys.shape
    caches = empty_caches(tokens, heads, d, torch.float8_e4m3fn)
    one = torch.ones(1)
    # Not by its launcher, which asks a GPU what it can do.
    store[(tokens, 1)](
        keys, values, *caches, torch.arange(tokens), one, one, heads * d, heads * d,
        caches[0].stride(0), d, 0, 0, heads * d, num_heads=heads, head_size=d, block_size=BLOCK,
        x=1, USE_HEAD_MAJOR_LAYOUT=False, FP8_KV_CACHE=True, TILE_SIZE=heads * d,
    )  # fmt: skip
    return attend(name, query, caches, tokens, k_descale=one, v_descale=one)


def per_token_head(name, query, keys, values):
    from vllm.utils.torch_utils import STR_DTYPE_TO_TORCH_DTYPE
    from vllm.v1.attention.ops.triton_reshape_and_cache_flash import (
        triton_reshape_and_cache_flash_per_token_head_quant as store,
    )
    from vllm.v1.kv_cache_interface import get_kv_quant_mode

    tokens, heads, d = keys.shape
    fp8 = name.startswith("fp8")
    dtype = torch.float8_e4m3fn if fp8 else STR_DTYPE_TO_TORCH_DTYPE[name]
    caches = empty_caches(tokens, heads, d // 2 if name.startswith("int4") else d, dtype)
    scales = [cache[..., 0].float() for cache in caches]
    store(keys, values, *caches, *scales, torch.arange(tokens), get_kv_quant_mode(name))
    return attend(name, query, caches, tokens, k_scale_cache=scales[0], v_scale_cache=scales[1])


def empty_caches(tokens, heads, width, dtype):
    shape = (-(-tokens // BLOCK), BLOCK, heads, width)
    return [torch.zeros(shape, dtype=dtype) for _ in ("keys", "values")]


def attend(name, query, caches, tokens, k_descale=None, v_descale=None, **scales):
    from vllm.v1.attention.ops.triton_unified_attention import unified_attention
    from vllm.v1.kv_cache_interface import get_kv_quant_mode

    out = torch.zeros_like(query)
    unified_attention(
        q=query,
        k=caches[0],
        v=caches[1],
        out=out,
        cu_seqlens_q=torch.tensor([0, len(query)], dtype=torch.int32),
        max_seqlen_q=len(query),
        seqused_k=torch.tensor([tokens], dtype=torch.int32),
        max_seqlen_k=tokens,
        softmax_scale=query.shape[-1] ** -0.5,
        causal=True,
        window_size=(-1, -1),
        block_table=torch.arange(len(caches[0]), dtype=torch.int32)[None],
        softcap=0,
        q_descale=None,
        k_descale=k_descale,
        v_descale=v_descale,
        kv_quant_mode=get_kv_quant_mode(name),
        **scales,
    )
    return out


def turboquant(name, query, keys, values):
    from vllm.model_executor.layers.quantization.turboquant.centroids import get_centroids
    from vllm.model_executor.layers.quantization.turboquant.config import TurboQuantConfig
    from vllm.v1.attention.backends.turboquant_attn import _build_hadamard
    from vllm.v1.attention.ops.triton_turboquant_decode import triton_turboquant_decode_attention
    from vllm.v1.attention.ops.triton_turboquant_store import triton_turboquant_store

    tokens, heads, d = keys.shape
    blocks = -(-tokens // BLOCK)
    config = TurboQuantConfig.from_cache_dtype(name, d)
    turn, centroids = _build_hadamard(d, "cpu"), get_centroids(d, config.centroid_bits)
    cache = torch.zeros(blocks, BLOCK, heads, config.slot_size_aligned, dtype=torch.uint8)
    triton_turboquant_store(
        keys, values, cache, torch.arange(tokens, dtype=torch.int32), turn,
        (centroids[:-1] + centroids[1:]) / 2, config.key_mse_bits, config.key_packed_size,
        config.effective_value_quant_bits, config.key_fp8,
    )  # fmt: skip
    return triton_turboquant_decode_attention(
        query, cache, torch.arange(blocks, dtype=torch.int32).expand(len(query), blocks),
        torch.arange(tokens - len(query) + 1, tokens + 1, dtype=torch.int32), turn, centroids,
        d**-0.5, config.key_mse_bits, config.key_packed_size, config.effective_value_quant_bits,
        config.key_fp8, config.norm_correction, turn, max_num_kv_splits=2,
    )  # fmt: skip


def page_bytes(name, heads, d):
    """Bytes of one token in one layer, by the attention's own answer to the cache manager."""
    from vllm.utils.torch_utils import STR_DTYPE_TO_TORCH_DTYPE
    from vllm.v1.attention.backends.triton_attn import TritonAttentionBackend
    from vllm.v1.attention.backends.turboquant_attn import TurboQuantAttentionBackend
    from vllm.v1.kv_cache_interface import FullAttentionSpec, get_kv_quant_mode

    spec = FullAttentionSpec(
        block_size=1, num_kv_heads=heads, head_size=d, dtype=STR_DTYPE_TO_TORCH_DTYPE[name],
        kv_quant_mode=get_kv_quant_mode(name),
    )  # fmt: skip
    turbo = name.startswith("turboquant")
    backend = TurboQuantAttentionBackend if turbo else TritonAttentionBackend
    return backend.customize_spec(spec).page_size_bytes


def main(path):
    interpret()
    given = torch.load(path)
    results = {}
    for (name, width), (query, keys, values) in given.items():
        kinds = {"turboquant": turboquant, "per_token_head": per_token_head}
        attention = next((kinds[part] for part in kinds if part in name), per_tensor)
        out = attention(name, query, keys, values)
        results[name, width] = out, page_bytes(name, *keys.shape[1:])
    torch.save(results, path)


if __name__ == "__main__":
    main(sys.argv[1])
