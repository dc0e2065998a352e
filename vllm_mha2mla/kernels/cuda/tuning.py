"""Sizes of the attention kernel's tiles, by the row's width and the GPU; and of its shares.

Rules and a short list, not an autotuner: the engine's first step neither waits nor varies.
"""

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vllm_mha2mla.kernels.cuda.pieces import Pieces
from vllm_mha2mla.kernels.cuda.rows import (
    SMALLEST,
    loaded_widths,
    next_power_of_2,
    row_chunks,
)

# Latent columns times queries, the output of one program, that the registers of 4 warps hold.
LARGEST_OUTPUT = 512 * 32
# What reductions between warps and alignment take of a program's shared memory, in bytes.
SCRATCH = 2048


@dataclass(frozen=True)
class Tiles:
    """Sizes of one program of the attention kernel.

    Attributes:
        queries: (token, head) pairs.
        rows: cache rows of a tile.
        warps: of 32 threads.
        stages: tiles in shared memory: one that is computed with, the others on their way.
    """

    queries: int
    rows: int
    warps: int
    stages: int

    def shared_memory(self, width: int, itemsize: int) -> int:
        """Estimate the bytes of shared memory that a program takes for rows of a padded width."""
        numbers = self.stages * self.rows * width + self.queries * (width + self.rows)
        return numbers * itemsize + SCRATCH


@dataclass(frozen=True)
class Gpu:
    """A GPU's compute capability, multiprocessors, and shared memory of each of these, in bytes."""

    capability: tuple[int, int]
    processors: int
    shared_memory: int


@functools.cache
def gpu_of(device: torch.device) -> Gpu:
    """Describe a device; for Triton's interpreter, a small GPU."""
    if device.type != "cuda":
        return Gpu((8, 9), 4, 99 << 10)
    properties: Any = torch.cuda.get_device_properties(device)
    return Gpu(
        (properties.major, properties.minor),
        properties.multi_processor_count,
        # Without the attribute, the least that one with tensor cores has.
        getattr(properties, "shared_memory_per_block_optin", 64 << 10),
    )


def choose_tiles(rank: int, rope: int, queries: int, cache: Tensor) -> Tiles:
    """Choose tiles for rows of a width.

    Args:
        rank: latent columns of a row.
        rope: rotary columns of a row.
        queries: (token, head) pairs of the longest request.
        cache: the paged cache, for its device and dtype.
    """
    rank, rope = loaded_widths(rank, rope, cache)
    queries = min(64, max(SMALLEST, next_power_of_2(queries)))
    return tiles_for(rank, rope, queries, gpu_of(cache.device), cache.element_size())


@functools.cache
def tiles_for(rank: int, rope: int, queries: int, gpu: Gpu, itemsize: int) -> Tiles:
    """Choose tiles for at most ``queries`` (token, head) pairs, a power of two, on any GPU."""
    if itemsize == 4:
        return Tiles(min(queries, 32), SMALLEST, warps=4, stages=1)
    latent = sum(row_chunks(rank, rope).latent)
    while queries > SMALLEST and latent * queries > LARGEST_OUTPUT:
        queries //= 2
    sizes = _sizes(gpu, queries)
    if rank % 8 or rope % 8:
        # Some loads cannot be made ahead then. Triton 3.6 lets others run ahead of them, and their
        # addresses were seen to be wrong (85 + 38 numbers on an H100).
        sizes = [(rows, 1) for rows, _ in sizes]
    for rows, stages in sizes:
        tiles = Tiles(queries, rows, 4, stages)
        if tiles.shared_memory(row_chunks(rank, rope).width, itemsize) <= gpu.shared_memory:
            return tiles
    return Tiles(min(queries, 32), SMALLEST, warps=4, stages=1)


def _sizes(gpu: Gpu, queries: int) -> list[tuple[int, int]]:
    """List rows and stages of tiles, the best first."""
    if gpu.capability[0] != 9:
        return [(64, 2), (32, 2), (32, 1), (16, 1)]
    if queries > 32:
        # Then products take the time, and two programs of two stages take turns with them.
        return [(64, 2), (32, 2)]
    # Third stages keep loads on their way during the products; two wait for each other.
    return [(64, 3), (64, 2), (32, 2)]


@functools.cache
def coded_tiles(pieces: Pieces, queries: int, gpu: Gpu, itemsize: int) -> Tiles:
    """Choose tiles for coded rows.

    Args:
        pieces: of a row.
        queries: (token, head) pairs of the longest request.
        gpu: where the kernel runs.
        itemsize: bytes of an activation.
    """
    queries = min(32, max(SMALLEST, next_power_of_2(queries)))
    if itemsize == 4:
        return Tiles(queries, SMALLEST, warps=4, stages=1)
    while queries > SMALLEST and pieces.latent * queries > 2 * LARGEST_OUTPUT:
        queries //= 2
    for count in range(queries.bit_length() - SMALLEST.bit_length() + 1):
        fewer = queries >> count
        warps = 4 if pieces.latent * fewer <= LARGEST_OUTPUT else 8
        for rows in (64, 32):
            tiles = Tiles(fewer, rows, warps, 1)
            if coded_shared_memory(tiles, pieces, gpu, itemsize) <= gpu.shared_memory:
                return tiles
    return Tiles(SMALLEST, SMALLEST, warps, 1)


def coded_shared_memory(tiles: Tiles, pieces: Pieces, gpu: Gpu, itemsize: int) -> int:
    """Estimate the bytes of shared memory that a program takes.

    On Hopper Triton keeps a tile in registers between the products, elsewhere in shared memory.
    """
    piece = max(pieces.width, pieces.half)
    width = 2 * piece if gpu.capability[0] == 9 else pieces.latent + piece
    numbers = tiles.queries * (pieces.row + tiles.rows) + tiles.rows * width
    return numbers * itemsize + SCRATCH


def resident(tiles: Tiles, shared_memory: int, gpu: Gpu) -> int:
    """Estimate the programs that a multiprocessor holds at once.

    Their registers hold two programs of 4 warps; their shared memory may hold fewer.
    """
    reserved = 1024
    room = gpu.shared_memory + reserved
    return max(1, min(8 // tiles.warps, room // (shared_memory + reserved)))


def choose_splits(programs: int, most: int, room: int) -> int:
    """Choose the shares of a context so that their programs fill the GPU once.

    Args:
        programs: programs without splitting.
        most: tiles of the longest context; a share has two at least.
        room: programs that the GPU runs at once.
    """
    return max(1, min(room // programs, most // 2))
