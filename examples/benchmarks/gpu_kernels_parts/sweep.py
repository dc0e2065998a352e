"""Sizes of the own kernel's tiles, and shares of a context, timed to choose among them."""

import functools
import itertools
import time
from collections.abc import Iterator

import torch

from gpu_kernels_parts.calls import latent_calls
from gpu_kernels_parts.loads import DTYPE, LOADS, Batch
from gpu_kernels_parts.report import Report
from vllm_mha2mla.kernels.cuda.rows import loaded_widths, row_chunks
from vllm_mha2mla.kernels.cuda.tuning import Tiles, choose_tiles, gpu_of

SHAPES = ((32, 512, 64), (32, 192, 64), (32, 448, 64), (9, 80, 40))  # heads, rank, rope
WORKS = (("decode", 8192, 16, 1), ("prefill", 4096, 1, 4096))  # context, requests, new tokens


def sweep(report: Report, seconds: float) -> None:
    """Time sizes of tiles for decode and prefill, then shares of the best; print the best."""
    for (what, context, requests, new), (heads, rank, rope) in itertools.product(WORKS, SHAPES):
        found: list[tuple[float, Tiles]] = []
        for tiles in candidates(heads, rank, rope, new):
            if time.time() - report.started > seconds:
                print("out of time", flush=True)
                return
            batch = Batch(context, requests, new, 64)
            read = context * requests * (rank + rope) * DTYPE.itemsize if new == 1 else 0
            calls = functools.partial(latent_calls, "own", heads, rank, rope, batch, tiles)
            labels = {"what": f"sweep {what}", "shape": f"{heads} x {rank}+{rope}", "tiles": tiles}
            result = report.add(functools.partial(report.timing, calls, read), **labels)
            if result:
                found.append((result["us"], tiles))
        torch.cuda.empty_cache()
        if not found:
            continue
        best = min(found, key=lambda pair: pair[0])[1]
        print(f"BEST {what} {heads} x {rank}+{rope}: {best}", flush=True)
        if new == 1:
            for (context, requests), block_size in itertools.product(LOADS, (16, 64)):
                batch = Batch(context, requests, 1, block_size)
                read = context * requests * (rank + rope) * DTYPE.itemsize
                for splits in (1, 2, 4, 8, 16, 32, 64, 128):
                    if not 32 <= splits * requests <= 300:
                        continue
                    calls = functools.partial(
                        latent_calls, "own", heads, rank, rope, batch, best, splits
                    )
                    labels = {"what": "sweep splits", "shape": f"{heads} x {rank}+{rope}"}
                    labels["load"] = f"{context} x {requests} block {block_size} splits {splits}"
                    report.add(functools.partial(report.timing, calls, read), **labels)
                torch.cuda.empty_cache()


def candidates(heads: int, rank: int, rope: int, new: int) -> Iterator[Tiles]:
    """Sizes that fit this GPU's shared memory, the chosen one first."""
    cache = torch.empty(1, 16, rank + rope, device="cuda", dtype=DTYPE)
    chosen = choose_tiles(rank, rope, heads * new, cache)
    yield chosen
    limit = gpu_of(cache.device).shared_memory
    counts = (32, 64) if new > 1 else (16,) if heads <= 16 else (32,)
    for queries, rows, warps, stages in itertools.product(counts, (64, 32, 128), (4, 8), (2, 3, 4)):
        tiles = Tiles(queries, rows, warps, stages)
        width = row_chunks(*loaded_widths(rank, rope, cache)).width
        fits = tiles.shared_memory(width, DTYPE.itemsize) <= limit
        if tiles != chosen and fits and rank * queries <= 512 * 32 * (warps // 4):
            yield tiles
