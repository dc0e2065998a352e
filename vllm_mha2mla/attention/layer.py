"""The attention layer vLLM runs: absorbed queries in, attention over the paged latents out."""

import torch
from torch import Tensor, nn
from vllm.config import CacheConfig, VllmConfig, get_current_vllm_config
from vllm.forward_context import get_forward_context
from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase
from vllm.utils.torch_utils import direct_register_custom_op, kv_cache_dtype_str_to_dtype
from vllm.v1.attention.backend import AttentionBackend
from vllm.v1.kv_cache_interface import KVCacheSpec, MLAAttentionSpec

from vllm_mha2mla.attention.backend import LatentAttentionBackend
from vllm_mha2mla.config import LatentLayout
from vllm_mha2mla.kernels import latent_attention, write_latents


class LatentCacheAttention(nn.Module, AttentionLayerBase):
    """Owns one layer's share of the paged cache, ``[blocks, block_size, rank + rope]``.

    Args:
        num_heads: query heads on this rank.
        layout: the layer's cache widths.
        scale: what scores are multiplied with.
        cache_config: vLLM's cache settings.
        prefix: the layer's name, under which the engine finds it.
    """

    supports_dcp = False

    def __init__(
        self,
        num_heads: int,
        layout: LatentLayout,
        scale: float,
        cache_config: CacheConfig | None,
        prefix: str,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.layout = layout
        self.scale = scale
        self.cache_dtype = cache_config.cache_dtype if cache_config else "auto"
        self.layer_name = prefix
        self.impl = LatentAttentionBackend.get_impl_cls()()
        # The engine replaces it once it knows how many blocks fit.
        self.kv_cache = torch.empty(0)
        layers = get_current_vllm_config().compilation_config.static_forward_context
        if prefix in layers:
            raise ValueError(f"Duplicate layer name: {prefix}")
        layers[prefix] = self

    def get_attn_backend(self) -> type[AttentionBackend]:
        """The backend that builds this layer's metadata."""
        return LatentAttentionBackend

    def get_kv_cache_spec(self, vllm_config: VllmConfig) -> KVCacheSpec:
        """One latent row per token, one "KV head", no separate values."""
        return MLAAttentionSpec(
            block_size=vllm_config.cache_config.block_size,
            num_kv_heads=1,
            max_tp_shards=1,
            head_size=self.layout.width,
            dtype=kv_cache_dtype_str_to_dtype(self.cache_dtype, vllm_config.model_config),
            cache_dtype_str=self.cache_dtype,
        )

    def bind_kv_cache(self, kv_cache: Tensor) -> None:
        """Keep the engine's view without its head axis  # [blocks, block_size, width]"""
        self.kv_cache = kv_cache.squeeze(1)

    def forward(self, query: Tensor, rows: Tensor) -> Tensor:
        """Cache the new rows and attend over all of each request's.

        Args:
            query: absorbed queries  # [tokens, heads, rank + rope]
            rows: new cache rows ``[c ; k_rope]``  # [tokens, rank + rope]

        Returns:
            attention-weighted latents  # [tokens, heads, rank]
        """
        out = query.new_empty(*query.shape[:-1], self.layout.kv_lora_rank)
        torch.ops.vllm.mha2mla_attention(query, rows, out, self.layer_name)
        return out


def _attention(query: Tensor, rows: Tensor, out: Tensor, layer_name: str) -> None:
    context = get_forward_context()
    batches = context.attn_metadata
    if batches is None:
        # A profiling run: there is no cache yet, only the shapes matter.
        out.zero_()
        return
    layer: LatentCacheAttention = context.no_compile_layers[layer_name]
    batch = batches[layer_name]
    tokens = batch.num_tokens
    write_latents(layer.kv_cache, rows[:tokens], batch.slot_mapping[:tokens])
    latent_attention(
        query[:tokens],
        layer.kv_cache,
        batch.block_table,
        batch.query_start_loc,
        batch.seq_lens,
        layer.scale,
        out[:tokens],
    )


def _attention_fake(query: Tensor, rows: Tensor, out: Tensor, layer_name: str) -> None:
    return None


# Opaque to torch.compile, as vLLM's own attention is: the cache is state, not a value.
direct_register_custom_op(
    op_name="mha2mla_attention",
    op_func=_attention,
    mutates_args=["out"],
    fake_impl=_attention_fake,
)
