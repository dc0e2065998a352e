"""The kernels of one layer on a GPU: chosen when the model is built, made when it has a cache."""

import functools
import logging
from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from vllm_mha2mla.coding.row_code import CodedRow, RowCode
from vllm_mha2mla.config import LatentWidths
from vllm_mha2mla.kernels.cuda import flash
from vllm_mha2mla.kernels.cuda.choose import Option, Ways, choose
from vllm_mha2mla.kernels.cuda.coded_tables import CodedTables, coded_tables
from vllm_mha2mla.kernels.cuda.expanded import Expansion
from vllm_mha2mla.kernels.cuda.layer import CudaLayer
from vllm_mha2mla.kernels.cuda.plan import Shape, workspace_numbers
from vllm_mha2mla.kernels.cuda.warm_up import warm_up
from vllm_mha2mla.kernels.cuda.workspace import ALIGNMENT, workspace
from vllm_mha2mla.padding import padded_width

# vLLM shows the log lines of loggers below its own name.
logger = logging.getLogger("vllm.mha2mla")


@dataclass(frozen=True)
class Heads:
    """The heads of one layer on one rank.

    Attributes:
        count: query heads.
        groups: groups of them that share their up-projections.
        nope: width of a head's query without rotation.
        v: width of a head's value.
    """

    count: int
    groups: int
    nope: int
    v: int


@dataclass(frozen=True)
class Limits:
    """Sizes of the engine that bound a step.

    Attributes:
        batched_tokens: the most new tokens of a step.
        model_len: the longest context.
    """

    batched_tokens: int
    model_len: int


class CudaKernel:
    """The choice for one layer.

    Args:
        widths: of the layer.
        heads: of the layer.
        dtype: of activations and cache.
        option: narrows the choice of the attention.
        limits: sizes of the engine.
        code: where rows are coded, how; ``row`` is in bytes then.
    """

    def __init__(
        self,
        widths: LatentWidths,
        heads: Heads,
        dtype: torch.dtype,
        option: Option,
        limits: Limits,
        code: RowCode | None = None,
    ) -> None:
        self.dtype, self.heads = dtype, heads.count
        self.tables: CodedTables | None = None
        # Numbers of a row as queries meet it.
        self.width = padded_width(widths, "cuda") if code is None else widths.width
        self.row, self.flash_version = self.width, None
        if code is None:
            offers = flash.offers(self.row, dtype)
            self.ways, self.flash_version = choose(widths, self.row, offers, option), offers.flash
        else:
            self.row, self.ways = code.row_bytes, Ways("triton", "triton")
        key = heads.nope + widths.qk_rope_head_dim
        self.expanded_version = (
            None if option == "triton" else flash.expanded_version(key, heads.v, dtype)
        )
        whole = self.ways.prefill in ("flash", "flash_whole")
        self.shape = Shape(
            heads=heads.count,
            groups=heads.groups,
            nope=heads.nope,
            rope=widths.qk_rope_head_dim,
            v=heads.v,
            rank=widths.kv_lora_rank,
            pair=self.width + (self.width if whole else widths.kv_lora_rank),
            value=flash.value_width(key, heads.v, self.expanded_version or 0),
        )
        self.numbers, self.model_len = 0, limits.model_len
        if self.expanded_version is not None:
            self.numbers = workspace_numbers(self.shape, limits.batched_tokens, limits.model_len)
        stored = f"{self.row - widths.width} of padding"
        if code is not None:
            stored = f"{self.row} bytes of codes"
        _log(
            f"{widths.kv_lora_rank}+{widths.qk_rope_head_dim} numbers a token and "
            f"{stored}: decode by {self.ways.decode}, prefill by "
            f"{'expanded keys and values or ' if self.numbers else ''}{self.ways.prefill}"
        )

    def layer(
        self,
        cache: Tensor,
        w_uk: Tensor,
        w_uv: Tensor,
        inv_freq: Tensor,
        scale: float,
        heads: int,
        coded: CodedRow | None = None,
    ) -> CudaLayer:
        """Make the layer; called again when weights have been exchanged. See ``CudaLayer``."""
        expansion = None
        if coded is not None:
            made = coded_tables(coded, inv_freq, self.dtype, self.model_len)
            # Captured graphs read those of an earlier call.
            if self.tables is None:
                self.tables = made
            else:
                self.tables.fill(made)
        tables = self.tables
        if self.expanded_version is not None:
            expansion = Expansion(
                cache, w_uk, w_uv, self.shape, scale, self.expanded_version, self.numbers, tables
            )
        weights = (w_uk, w_uv, inv_freq)
        ways = (self.ways, self.flash_version)
        return CudaLayer(cache, *weights, scale, heads, *ways, expansion, tables)

    def warm_up(self, layer: CudaLayer) -> None:
        """Compile what this layer launches, unless one like it has."""
        if layer.cache.is_cuda:
            block_size, stride = layer.cache.shape[1], layer.cache.stride(0)
            kind = (self.shape, self.ways, layer.tables and layer.tables.kind)
            _warm_up_once(layer, self.model_len, *kind, block_size, stride % 16)

    def reserve(self, tokens: int, device: torch.device) -> None:
        """Take as much memory as a step of so many tokens will, while the engine measures it."""
        if self.numbers:
            # Latents, keys and values begin at multiples of the alignment.
            workspace(self.dtype, device, (self.numbers + 3 * ALIGNMENT,))
        # Absorbed queries and their outputs.
        torch.empty(2, tokens, self.heads, self.width, dtype=self.dtype, device=device)


_warm: set[tuple[Hashable, ...]] = set()


def _warm_up_once(layer: CudaLayer, model_len: int, *kind: Hashable) -> None:
    if kind not in _warm:
        _warm.add(kind)
        warm_up(layer, model_len)


@functools.cache
def _log(line: str) -> None:
    """Tell each choice once, however many layers share it."""
    logger.info("mha2mla: %s", line)
