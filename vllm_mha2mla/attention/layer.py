"""The attention layer that vLLM runs between a decoder layer's projections."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import CacheConfig, VllmConfig, get_current_vllm_config
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.attention.kv_transfer_utils import maybe_transfer_kv_layer
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.platforms import current_platform
from vllm.utils.torch_utils import direct_register_custom_op, kv_cache_dtype_str_to_dtype
from vllm.v1.attention.backend import AttentionBackend
from vllm.v1.kv_cache_interface import KVCacheSpec, MLAAttentionSpec

from vllm_mha2mla.attention.backend import LatentAttentionBackend
from vllm_mha2mla.attention.pages import shared_page
from vllm_mha2mla.attention.self_check import check_layers
from vllm_mha2mla.attention.up_projection import UpProjection
from vllm_mha2mla.attention.vllm_releases import REPLICATED
from vllm_mha2mla.coding.row_code import CodedRow
from vllm_mha2mla.config import LatentWidths
from vllm_mha2mla.kernels import LayerStep, layer_factory

ON_CPU = current_platform.is_cpu()


class LatentCacheAttention(nn.Module, AttentionLayerBase):
    """Owns one layer's share of the paged cache, ``[blocks, block_size, row]``.

    A row is ``rank + rope`` numbers, on GPUs padded (``padding.py``), or the bytes of a coded row
    (``coding``).

    Args:
        up: the absorbed projections.
        inv_freq: frequency of each rotary pair, float32  # [rope/2]
        widths: the layer's cache widths.
        scale: factor of the scores.
        cache_config: vLLM's cache settings.
        prefix: the layer's name, under which the engine finds it.
        coded: where rows are coded, how.
    """

    supports_dcp = False

    def __init__(
        self,
        up: UpProjection,
        inv_freq: nn.Parameter,
        widths: LatentWidths,
        scale: float,
        cache_config: CacheConfig | None,
        prefix: str,
        coded: CodedRow | None = None,
    ) -> None:
        super().__init__()
        # In a tuple, because they are the enclosing module's parameters and not this one's.
        self.weights = (up, inv_freq)
        self.coded = coded
        self.widths = widths
        self.scale = scale
        self.cache_dtype = cache_config.cache_dtype if cache_config else "auto"
        self.layer_name = prefix
        self.impl = LatentAttentionBackend.get_impl_cls()()
        # The engine binds the real cache once it knows how many blocks fit.
        self._kv_cache = torch.empty(0)
        self._step: LayerStep | None = None
        self._made_of: list[int] = []
        self.vllm_config = vllm_config = get_current_vllm_config()
        self.backend: type[AttentionBackend] = LatentAttentionBackend
        self.gpu: Any = None
        if ON_CPU:
            # If the kernel has to be compiled, it is now, while the engine starts, and not in the
            # first request.
            self.make_step = layer_factory()
            self.row = widths.width if coded is None else coded.code.row_bytes
        else:
            from vllm_mha2mla.attention.cuda_backend import CudaLatentBackend, cuda_kernel

            self.backend = CudaLatentBackend
            self.gpu = cuda_kernel(up, widths, vllm_config, coded)
            self.row, self.make_step = self.gpu.row, self.gpu.layer
        layers = vllm_config.compilation_config.static_forward_context
        if prefix in layers:
            raise ValueError(f"Duplicate layer name: {prefix}")
        layers[prefix] = self

    def get_attn_backend(self) -> type[AttentionBackend]:
        """The backend that builds this layer's metadata."""
        return self.backend

    def get_kv_cache_spec(self, vllm_config: VllmConfig) -> KVCacheSpec:
        """One latent row per token, one "KV head", no separate values."""
        dtype = kv_cache_dtype_str_to_dtype(self.cache_dtype, vllm_config.model_config)
        dtype = dtype if self.coded is None else torch.uint8
        size = {"block_size": vllm_config.cache_config.block_size, "head_size": self.row}
        page = shared_page(vllm_config)
        if page is not None:
            size = {
                "block_size": page.tokens,
                "head_size": page.row_bytes // dtype.itemsize,
                "page_size_padded": page.page_bytes,
            }
        return MLAAttentionSpec(
            num_kv_heads=1,
            dtype=dtype,
            cache_dtype_str=self.cache_dtype,
            **size,
            **REPLICATED,
        )

    def bind_kv_cache(self, kv_cache: Tensor) -> None:
        """Keep this layer's part of the engine's view  # [blocks, 1, tokens, row or more]"""
        if kv_cache.shape[-1] > self.row:
            # Those of another layer; kernels read a block's rows one behind another.
            strides = (*kv_cache.stride()[:2], self.row, 1)
            kv_cache = kv_cache.as_strided((*kv_cache.shape[:3], self.row), strides)
        self.kv_cache = kv_cache
        if self.gpu is not None:
            self.gpu.warm_up(self.step)
        all_layers = self.vllm_config.compilation_config.static_forward_context.values()
        ours = [layer for layer in all_layers if isinstance(layer, LatentCacheAttention)]
        if all(layer.kv_cache.numel() for layer in ours):
            check_layers(ours, self.vllm_config)

    @property
    def kv_cache(self) -> Tensor:
        """This layer's cache; a small one while the engine profiles, then none, then the real.

        KV connectors read and write it in the shape that vLLM gives every layer's.
        """
        return self._kv_cache

    @kv_cache.setter
    def kv_cache(self, kv_cache: Tensor) -> None:
        self._kv_cache = kv_cache
        self._step = None

    def reserve(self, query: Tensor) -> None:
        """Take the memory of a step for these queries, in a profiling run."""
        if self.gpu is not None:
            self.gpu.reserve(len(query), query.device)

    def process_weights_after_loading(self, act_dtype: torch.dtype) -> None:
        """Drop what was made of the old weights, which a kernel keeps in an order of its own.

        vLLM calls this of an attention layer after loading, and when a running engine's weights
        have been exchanged.
        """
        self.forget_weights()

    def forget_weights(self) -> None:
        """Make the next step of the weights as they are then."""
        self._step = None

    def _writes(self) -> list[int]:
        """Count the writes in place to each tensor that a step is made of."""
        up, inv_freq = self.weights
        tensors: list[Tensor] = [up.weight, inv_freq]
        if self.coded is not None:
            tensors += [self.coded.rotary_mean, self.coded.first_row]
        return [0 if tensor.is_inference() else tensor._version for tensor in tensors]

    @property
    def step(self) -> LayerStep:
        """The function that computes one step; made once weights and cache are there.

        Trainers write into a running engine's weights and tell no layer.
        """
        writes = self._writes()
        if self._step is None or writes != self._made_of:
            self._made_of = writes
            up, inv_freq = self.weights
            w_uk, w_uv = up()
            self._step = self.make_step(
                *(self.kv_cache.squeeze(1), w_uk, w_uv, inv_freq.data),
                *(self.scale, up.num_heads, self.coded),
            )
        return self._step

    def forward(self, query: Tensor, kv_latent: Tensor, positions: Tensor) -> Tensor:
        """Cache the new tokens' latents and attend over all of each request's.

        Args:
            query: ``[q_nope ; q_rope]`` of every head  # [tokens, heads * (nope + rope)]
            kv_latent: ``[c ; k_rope]`` of the new tokens, not rotated  # [tokens, rank + rope]
            positions: position of each token in its request  # [tokens]

        Returns:
            outputs of all heads  # [tokens, heads * v]
        """
        up, _ = self.weights
        out = query.new_empty(query.shape[0], up.num_heads * up.v)
        if not ON_CPU or torch.compiler.is_compiling():
            torch.ops.vllm.mha2mla_attention(query, kv_latent, positions, out, self.layer_name)
        else:
            # Called directly, because on CPUs the dispatcher costs more than a small batch's
            # attention.
            _attention(query, kv_latent, positions, out, self.layer_name)
        return out


def _cached_attention(
    query: Tensor, kv_latent: Tensor, positions: Tensor, out: Tensor, layer_name: str
) -> None:
    context = get_forward_context()
    batches = context.attn_metadata
    layer: LatentCacheAttention = context.no_compile_layers[layer_name]
    if batches is None:
        # A profiling run: there is no cache yet, only the shapes matter.
        layer.reserve(query)
        out.zero_()
        return
    layer.step(query, kv_latent, positions, batches[layer_name], out)


# Waits for the cache that a KV connector brings, and hands it what is to be kept.
_attention: Callable[..., None] = maybe_transfer_kv_layer(_cached_attention)


def _attention_fake(
    query: Tensor, kv_latent: Tensor, positions: Tensor, out: Tensor, layer_name: str
) -> None:
    return None


# Opaque to torch.compile, as vLLM's own attention is: the cache is state, not a value. The kernels
# for GPUs turn the query's rotary part in place.
direct_register_custom_op(
    op_name="mha2mla_attention",
    op_func=_attention,
    mutates_args=["out"] if ON_CPU else ["query", "out"],
    fake_impl=_attention_fake,
)
