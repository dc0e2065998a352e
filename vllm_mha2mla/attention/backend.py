"""The attention backend vLLM plans batches and lays out the cache with."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from vllm.config import VllmConfig
from vllm.v1.attention.backend import (
    AttentionBackend,
    AttentionImplBase,
    AttentionMetadata,
    AttentionMetadataBuilder,
    CommonAttentionMetadata,
    MultipleOf,
)
from vllm.v1.kv_cache_interface import KVCacheSpec

from vllm_mha2mla.kernels import PagedBatch

if TYPE_CHECKING:
    from vllm.config.cache import CacheDType


class LatentAttentionImpl(AttentionImplBase["LatentAttentionMetadata"]):
    """The flags that vLLM asks a backend's implementation for.

    The computation is in ``LatentCacheAttention``, which vLLM reaches through the layer itself.
    """


@dataclass
class LatentAttentionMetadata(PagedBatch, AttentionMetadata):
    """One step's batch in the form that the kernels take."""


class LatentAttentionMetadataBuilder(AttentionMetadataBuilder[LatentAttentionMetadata]):
    """Translates vLLM's description of a batch for the kernels."""

    def __init__(
        self,
        kv_cache_spec: KVCacheSpec,
        layer_names: list[str],
        vllm_config: VllmConfig,
        device: torch.device,
    ) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)

    def build(
        self,
        common_prefix_len: int,
        common_attn_metadata: CommonAttentionMetadata,
        fast_build: bool = False,
    ) -> LatentAttentionMetadata:
        """Metadata of the next step; the same for every layer."""
        common = common_attn_metadata
        return LatentAttentionMetadata(
            num_tokens=common.num_actual_tokens,
            query_start_loc=common.query_start_loc,
            seq_lens=common.seq_lens,
            block_table=common.block_table_tensor,
            slot_mapping=common.slot_mapping,
        )


class LatentAttentionBackend(AttentionBackend):
    """Paged latent cache on CPUs: any width, any block size, any float dtype."""

    supported_dtypes: ClassVar[list[torch.dtype]] = [
        torch.float16,
        torch.bfloat16,
        torch.float32,
    ]
    supported_kv_cache_dtypes: ClassVar[list["CacheDType"]] = ["auto", "float16", "bfloat16"]

    @staticmethod
    def get_supported_kernel_block_sizes(
        kv_cache_spec: KVCacheSpec | None = None,
    ) -> list[int | MultipleOf]:
        """Accept any block size: the kernels address rows one block at a time."""
        return [MultipleOf(1)]

    @staticmethod
    def get_name() -> str:
        """Name shown in vLLM's logs."""
        return "MHA2MLA_CPU"

    @staticmethod
    def get_impl_cls() -> type[LatentAttentionImpl]:
        """The implementation's flags."""
        return LatentAttentionImpl

    @staticmethod
    def get_builder_cls() -> type[AttentionMetadataBuilder]:
        """The metadata builder."""
        return LatentAttentionMetadataBuilder
