"""The attention backend vLLM plans batches and lays out the cache with on NVIDIA GPUs."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from vllm.config import VllmConfig
from vllm.v1.attention.backend import (
    AttentionCGSupport,
    AttentionMetadata,
    AttentionMetadataBuilder,
    CommonAttentionMetadata,
    MultipleOf,
)
from vllm.v1.attention.backends.utils import split_decodes_and_prefills
from vllm.v1.kv_cache_interface import KVCacheSpec

from vllm_mha2mla.attention.backend import LatentAttentionBackend
from vllm_mha2mla.attention.up_projection import UpProjection
from vllm_mha2mla.coding.row_code import CodedRow
from vllm_mha2mla.config import LatentWidths
from vllm_mha2mla.kernels.cuda.batch import CudaBatch
from vllm_mha2mla.kernels.cuda.choose import option_of
from vllm_mha2mla.kernels.cuda.kernel import CudaKernel, Heads, Limits

# Tokens times parts of their contexts: enough work for any GPU, and with 32 heads of 512 latents
# 256 MiB of intermediate results.
MOST_PARTS = 4096
PREFERRED_BLOCK = 64


@dataclass
class CudaLatentMetadata(CudaBatch, AttentionMetadata):
    """One step's batch in the form that the kernels take."""


class CudaLatentMetadataBuilder(AttentionMetadataBuilder[CudaLatentMetadata]):
    """Translates vLLM's description of a batch, from what the host knows of it alone.

    Batches of decodes, speculated tokens included, are captured in whole CUDA graphs.
    """

    _cudagraph_support: ClassVar[AttentionCGSupport] = AttentionCGSupport.UNIFORM_BATCH

    def __init__(
        self,
        kv_cache_spec: KVCacheSpec,
        layer_names: list[str],
        vllm_config: VllmConfig,
        device: torch.device,
    ) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        self._init_reorder_batch_threshold(1, supports_spec_as_decode=True)
        compilation = vllm_config.compilation_config
        # FlashAttention's intermediate results grow with the parts of contexts, and a graph keeps
        # them: vLLM bounds the parts where it captures graphs. Many requests need few of them.
        self.captured_tokens = 0
        if compilation.cudagraph_mode.has_full_cudagraphs():
            self.captured_tokens = compilation.max_cudagraph_capture_size or 0
        self.max_splits: int = vllm_config.attention_config.flash_attn_max_num_splits_for_cuda_graph

    def build(
        self,
        common_prefix_len: int,
        common_attn_metadata: CommonAttentionMetadata,
        fast_build: bool = False,
    ) -> CudaLatentMetadata:
        """Metadata of the next step; the same for every layer of a width."""
        common = common_attn_metadata
        threshold = self.reorder_batch_threshold or 1
        decodes, _, decode_tokens, _ = split_decodes_and_prefills(common, threshold)
        return CudaLatentMetadata(
            num_tokens=common.num_actual_tokens,
            query_start_loc=common.query_start_loc,
            seq_lens=common.seq_lens,
            block_table=common.block_table_tensor,
            slot_mapping=common.slot_mapping,
            max_query_len=common.max_query_len,
            max_seq_len=common.max_seq_len,
            decodes=decodes,
            decode_tokens=decode_tokens,
            decode_query_len=min(common.max_query_len, threshold),
            prefills=_prefills(common, decodes),
            num_splits=self._splits(common.num_actual_tokens),
        )

    def _splits(self, tokens: int) -> int:
        """The most parts of one context, where a graph may hold their results; else 0."""
        if tokens > self.captured_tokens:
            return 0
        return max(1, min(self.max_splits, MOST_PARTS // tokens))


def _prefills(common: CommonAttentionMetadata, decodes: int) -> list[tuple[int, int]]:
    """New tokens and context of every request behind the decodes, where the host knows them."""
    lengths = common.seq_lens_cpu_upper_bound
    if decodes == common.num_reqs or lengths is None:
        return []
    # Of prefills the bound is exact; only speculated tokens make it one.
    new = common.query_start_loc_cpu[decodes : common.num_reqs + 1].diff().tolist()
    return list(zip(new, lengths[decodes : common.num_reqs].tolist(), strict=True))


class CudaLatentBackend(LatentAttentionBackend):
    """Paged latent cache on NVIDIA GPUs."""

    @staticmethod
    def get_supported_kernel_block_sizes(
        kv_cache_spec: KVCacheSpec | None = None,
    ) -> list[int | MultipleOf]:
        """Accept what FlashAttention accepts."""
        return [MultipleOf(16)]

    @classmethod
    def get_preferred_block_size(cls, default_block_size: int) -> int:
        """Ask for blocks of 64 where the user has not chosen: our kernel reads them faster."""
        return max(default_block_size, PREFERRED_BLOCK)

    @staticmethod
    def get_name() -> str:
        """Name shown in vLLM's logs."""
        return "MHA2MLA_CUDA"

    @staticmethod
    def get_builder_cls() -> type[CudaLatentMetadataBuilder]:
        """The metadata builder."""
        return CudaLatentMetadataBuilder


def cuda_kernel(
    up: UpProjection, widths: LatentWidths, vllm_config: VllmConfig, coded: CodedRow | None
) -> CudaKernel:
    """The kernels of one layer on this rank."""
    model = vllm_config.model_config
    return CudaKernel(
        widths,
        Heads(up.num_heads, up.groups, up.nope, up.v),
        model.dtype,
        option_of(model.hf_config),
        Limits(vllm_config.scheduler_config.max_num_batched_tokens, model.max_model_len),
        None if coded is None else coded.code,
    )
