"""The structures of ``csrc/kernel.h``, field by field, and how tensors fill them."""

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, Structure, c_double, c_int64, c_void_p

import torch
from torch import Tensor

from vllm_mha2mla.coding.row_code import UNIT
from vllm_mha2mla.kernels.coded_structures import CodedLayer

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.uint8: 3}


def _integers(*names: str) -> list[tuple[str, type]]:
    return [(name, c_int64) for name in names]


class Cache(Structure):
    """A paged cache  # [blocks, block_size, width], or of coded rows"""

    _fields_ = [
        ("data", c_void_p),
        *_integers("dtype", "block_stride", "row_stride", "block_size", "width"),
        ("coded", c_void_p),
    ]


class Batch(Structure):
    """The blocks and queries of every request."""

    _fields_ = [
        ("block_table", c_void_p),
        ("table_stride", c_int64),
        ("query_start", c_void_p),
        ("seq_lens", c_void_p),
        ("requests", c_int64),
    ]


class Attention(Structure):
    """One call of ``latent_attention``."""

    _fields_ = [
        ("cache", Cache),
        ("batch", Batch),
        ("query", c_void_p),
        *_integers("query_dtype", "query_token", "query_head"),
        ("out", c_void_p),
        *_integers("out_dtype", "out_token", "out_head"),
        *_integers("heads", "rank"),
        ("scale", c_double),
    ]


class Write(Structure):
    """One call of ``write_latents``."""

    _fields_ = [
        ("cache", Cache),
        ("kv_latent", c_void_p),
        *_integers("kv_latent_dtype", "kv_latent_token"),
        ("slots", c_void_p),
        ("tokens", c_int64),
    ]


class Layer(Structure):
    """The part of a layer's arguments that never changes."""

    _fields_ = [
        ("cache", Cache),
        ("inv_freq", c_void_p),
        ("w_uk", c_void_p),
        ("w_uv", c_void_p),
        *_integers("dtype", "heads", "nope", "rope", "rank", "v"),
        ("scale", c_double),
    ]


class Step(Structure):
    """The part of a layer's arguments that changes from call to call."""

    _fields_ = [
        ("batch", Batch),
        ("slots", c_void_p),
        ("positions", c_void_p),
        ("tokens", c_int64),
        ("query", c_void_p),
        ("query_token", c_int64),
        ("kv_latent", c_void_p),
        ("kv_latent_token", c_int64),
        ("out", c_void_p),
        ("out_token", c_int64),
    ]


class Weights(Structure):
    """Absorbed weights to be packed  # [heads, inputs, outputs]"""

    _fields_ = [
        ("data", c_void_p),
        *_integers("dtype", "head", "input", "output", "heads", "inputs", "outputs", "cache_dtype"),
        ("packed", c_void_p),
    ]


def declare(library: ctypes.CDLL) -> None:
    """Give the library's functions their types."""
    signatures: dict[str, tuple[type | None, Sequence[type]]] = {
        "variant": (c_void_p, [ctypes.c_int]),
        "name": (ctypes.c_char_p, [c_void_p]),
        "write": (ctypes.c_int, [c_void_p, POINTER(Write)]),
        "attend": (ctypes.c_int, [c_void_p, POINTER(Attention)]),
        "layer": (ctypes.c_int, [c_void_p, POINTER(Layer), POINTER(Step)]),
        "packed_size": (c_int64, [c_void_p, POINTER(Weights)]),
        "pack": (None, [c_void_p, POINTER(Weights)]),
        "exp2": (None, [c_void_p, c_void_p, c_void_p, c_int64]),
        "max_threads": (ctypes.c_int, []),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(library, f"mha2mla_{name}")
        function.restype, function.argtypes = result, arguments


def cache_of(cache: Tensor, coded: CodedLayer | None = None) -> Cache:
    """Describe a cache; blocks may lie further apart than they are long, uncoded rows too."""
    if not cache.is_cpu or cache.stride(2) != 1:
        raise ValueError("the cache must be on the CPU, its rows contiguous")
    _, block_size, width = cache.shape
    address = None
    if coded is not None:
        if cache.dtype != torch.uint8 or block_size % UNIT or cache.stride(1) != width:
            raise ValueError("coded rows need blocks of bytes, contiguous, of a multiple of 8 rows")
        width, address = coded.width, ctypes.addressof(coded.structure)
    return Cache(
        cache.data_ptr(), DTYPES[cache.dtype], *cache.stride()[:2], block_size, width, address
    )


def batch_of(block_table: Tensor, query_start_loc: Tensor, seq_lens: Tensor) -> Batch:
    """Describe a batch; the tensors are int32 and contiguous in their last dimension."""
    for tensor in (block_table, query_start_loc, seq_lens):
        if tensor.dtype != torch.int32 or tensor.stride(-1) != 1:
            raise ValueError("block table, query starts and lengths must be contiguous int32")
    return Batch(
        block_table.data_ptr(),
        block_table.stride(0),
        query_start_loc.data_ptr(),
        seq_lens.data_ptr(),
        len(seq_lens),
    )
