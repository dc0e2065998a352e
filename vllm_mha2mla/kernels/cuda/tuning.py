"""Sizes of the attention kernel's tiles, by the row's width and the GPU; and of its shares.

A table, not an autotuner: the engine's first step neither waits nor varies.
"""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from vllm_mha2mla.kernels.cuda.rows import SMALLEST, Chunks, next_power_of_2


@dataclass(frozen=True)
class Tiles:
    """Sizes of one program of the attention kernel.

    Attributes:
        queries: (token, head) pairs.
        rows: cache rows of a tile.
        warps: of 32 threads.
        stages: tiles on their way from memory, and the one that is computed with.
        resident: programs that a multiprocessor holds at once.
    """

    queries: int
    rows: int
    warps: int
    stages: int
    resident: int


def choose_tiles(chunks: Chunks, queries: int, cache: Tensor) -> Tiles:
    """Choose tiles that fit a multiprocessor's shared memory.

    Args:
        chunks: of a row.
        queries: (token, head) pairs of the longest request.
        cache: the paged cache, for its device and dtype.
    """
    return _tiles(
        chunks,
        min(64, max(SMALLEST, next_power_of_2(queries))),
        _gpu(cache.device),
        cache.element_size(),
    )


def choose_splits(programs: int, tiles: int, chosen: Tiles, cache: Tensor) -> int:
    """Choose the shares of a context so that their programs fill the GPU once.

    Args:
        programs: programs without splitting.
        tiles: tiles of the longest context.
        chosen: the tiles.
        cache: for its device.
    """
    room = _gpu(cache.device).processors * chosen.resident
    return max(1, min(room // programs, tiles, 128))


@dataclass(frozen=True)
class _Gpu:
    capability: tuple[int, int]
    processors: int


@functools.cache
def _gpu(device: torch.device) -> _Gpu:
    """Tell what matters of a GPU; for Triton's interpreter, a small one."""
    if device.type != "cuda":
        return _Gpu((8, 9), 4)
    properties = torch.cuda.get_device_properties(device)
    return _Gpu((properties.major, properties.minor), properties.multi_processor_count)


@functools.cache
def _tiles(chunks: Chunks, queries: int, gpu: _Gpu, itemsize: int) -> Tiles:
    if itemsize == 4:
        return Tiles(queries=min(queries, 32), rows=16, warps=4, stages=1, resident=1)
    return Tiles(
        queries=queries, rows=64, warps=8 if chunks.width > 320 else 4, stages=3, resident=1
    )
