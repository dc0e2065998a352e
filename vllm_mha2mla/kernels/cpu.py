"""The C++ kernel behind the functions of ``reference.py``."""

import ctypes
import functools
import os
from ctypes import byref
from pathlib import Path

import torch
from torch import Tensor

from vllm_mha2mla.coding.row_code import CodedRow
from vllm_mha2mla.errors import KernelBuildError
from vllm_mha2mla.kernels import structures
from vllm_mha2mla.kernels.batch import PagedBatch
from vllm_mha2mla.kernels.coded_structures import CodedLayer
from vllm_mha2mla.kernels.reference import of_every_head
from vllm_mha2mla.kernels.structures import DTYPES

ISA_VARIABLE = "VLLM_MHA2MLA_ISA"
"""Environment variable that names an instruction set to use instead of the best."""


class CpuKernel:
    """One instruction set's build of the kernel.

    Args:
        path: the compiled library.
        isa: the instruction set; ``None`` takes the best that this CPU has.

    Raises:
        KernelBuildError: the library does not load, or this CPU lacks the instruction set.
    """

    def __init__(self, path: Path, isa: str | None = None) -> None:
        self.library = _load(path)
        variants = supported(path)
        if isa is None:
            isa = next(iter(variants))
        if isa not in variants:
            raise KernelBuildError(
                f"{ISA_VARIABLE}={isa}: this CPU has {', '.join(variants)}; unset it"
            )
        self.isa = isa
        self.variant = variants[isa]

    def write_latents(
        self, cache: Tensor, kv_latent: Tensor, slots: Tensor, coded: CodedLayer | None = None
    ) -> None:
        """See ``reference.write_latents``.

        Rows to be coded are already turned, and the first row is taken from a text's first.
        """
        kv_latent = kv_latent.contiguous()
        slots = slots.contiguous()
        arguments = structures.Write(
            structures.cache_of(cache, coded),
            kv_latent.data_ptr(),
            DTYPES[kv_latent.dtype],
            kv_latent.shape[1],
            slots.data_ptr(),
            len(slots),
        )
        _check(self.library.mha2mla_write(self.variant, byref(arguments)))

    def latent_attention(
        self,
        query: Tensor,
        cache: Tensor,
        block_table: Tensor,
        query_start_loc: Tensor,
        seq_lens: Tensor,
        scale: float,
        out: Tensor,
        coded: CodedLayer | None = None,
    ) -> None:
        """See ``reference.latent_attention``."""
        if query.stride(2) != 1 or out.stride(2) != 1:
            raise ValueError("queries and outputs must be contiguous in their last dimension")
        integers = [_int32(tensor) for tensor in (block_table, query_start_loc, seq_lens)]
        arguments = structures.Attention(
            structures.cache_of(cache, coded),
            structures.batch_of(*integers),
            *(query.data_ptr(), DTYPES[query.dtype], query.stride(0), query.stride(1)),
            *(out.data_ptr(), DTYPES[out.dtype], out.stride(0), out.stride(1)),
            *(query.shape[1], out.shape[2], scale),
        )
        _check(self.library.mha2mla_attend(self.variant, byref(arguments)))

    def layer(
        self,
        cache: Tensor,
        w_uk: Tensor,
        w_uv: Tensor,
        inv_freq: Tensor,
        scale: float,
        heads: int,
        coded: CodedRow | None = None,
    ) -> "CpuLayer":
        """See ``reference.ReferenceLayer``."""
        w_uk, w_uv = of_every_head(w_uk, heads), of_every_head(w_uv, heads)
        return CpuLayer(self, cache, w_uk, w_uv, inv_freq, scale, coded)

    def exp2(self, x: Tensor) -> Tensor:
        """The softmax's own ``2^x``, for its test  # float32, any shape"""
        x = x.contiguous()
        out = torch.empty_like(x)
        self.library.mha2mla_exp2(self.variant, x.data_ptr(), out.data_ptr(), x.numel())
        return out

    def threads(self) -> int:
        """The number of threads that a call may use."""
        return int(self.library.mha2mla_max_threads())

    def pack(self, weights: Tensor, cache_dtype: torch.dtype) -> Tensor:
        """Bring weights into the order in which the kernel reads them.

        Args:
            weights: any strides  # [heads, inputs, outputs]
            cache_dtype: dtype of the cache they are used with.
        """
        arguments = structures.Weights(
            weights.data_ptr(),
            DTYPES[weights.dtype],
            *weights.stride(),
            *weights.shape,
            DTYPES[cache_dtype],
        )
        size = self.library.mha2mla_packed_size(self.variant, byref(arguments))
        # float32, so that the buffer starts where a vector may start.
        packed = torch.empty(size, dtype=torch.float32)
        arguments.packed = packed.data_ptr()
        self.library.mha2mla_pack(self.variant, byref(arguments))
        return packed


class CpuLayer:
    """A layer between its projections, in one call: see ``reference.ReferenceLayer``."""

    def __init__(
        self,
        kernel: CpuKernel,
        cache: Tensor,
        w_uk: Tensor,
        w_uv: Tensor,
        inv_freq: Tensor,
        scale: float,
        coded: CodedRow | None,
    ) -> None:
        heads, nope, rank = w_uk.shape
        self.dtype, self.isa = w_uk.dtype, kernel.isa
        self.call = functools.partial(kernel.library.mha2mla_layer, kernel.variant)
        self.coded = None if coded is None else CodedLayer(coded, inv_freq)
        # The structure holds their addresses.
        self.tensors = (
            cache,
            inv_freq,
            kernel.pack(w_uk, cache.dtype),
            kernel.pack(w_uv.transpose(1, 2), cache.dtype),
        )
        self.layer = byref(
            structures.Layer(
                structures.cache_of(cache, self.coded),
                *(tensor.data_ptr() for tensor in self.tensors[1:]),
                *(DTYPES[self.dtype], heads, nope, 2 * len(inv_freq), rank, w_uv.shape[1]),
                scale,
            )
        )

    def __call__(
        self, query: Tensor, kv_latent: Tensor, positions: Tensor, batch: PagedBatch, out: Tensor
    ) -> None:
        """See ``reference.ReferenceLayer``."""
        step = batch.step
        if step is None:
            step = batch.step = _step_of(batch)
        step.positions = positions.data_ptr()
        step.query, step.query_token = query.data_ptr(), query.stride(0)
        step.kv_latent, step.kv_latent_token = kv_latent.data_ptr(), kv_latent.stride(0)
        step.out, step.out_token = out.data_ptr(), out.stride(0)
        _check(self.call(self.layer, byref(step)))


def _int32(tensor: Tensor) -> Tensor:
    # Checked first, because ``to`` takes longer even where there is nothing to convert.
    if tensor.dtype == torch.int32 and tensor.is_contiguous():
        return tensor
    return tensor.to(torch.int32).contiguous()


def _step_of(batch: PagedBatch) -> structures.Step:
    return structures.Step(
        structures.batch_of(batch.block_table, batch.query_start_loc, batch.seq_lens),
        batch.slot_mapping.data_ptr(),
        None,
        batch.num_tokens,
    )


def _check(status: int) -> None:
    if status:
        raise MemoryError("latent attention: no memory for intermediate results")


@functools.cache
def _load(path: Path) -> ctypes.CDLL:
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise KernelBuildError(f"{path}: {error}; delete it") from error
    structures.declare(library)
    return library


@functools.cache
def supported(path: Path) -> dict[str, int]:
    """Instruction sets of the library that this CPU has, best first, with their handles."""
    library = _load(path)
    found: dict[str, int] = {}
    while variant := library.mha2mla_variant(len(found)):
        found[library.mha2mla_name(variant).decode()] = variant
    return found


def chosen_isa() -> str | None:
    """The instruction set that the environment names, or ``None``."""
    return os.environ.get(ISA_VARIABLE) or None
