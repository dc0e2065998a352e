"""Kernels compiled side by side, before any is timed."""

import contextlib
import functools
import itertools
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from gpu_kernels_parts.calls import latent_calls
from gpu_kernels_parts.checks import DECODE, MIXED, attention_error, check_cases
from gpu_kernels_parts.coded import SHAPES as CODED_SHAPES
from gpu_kernels_parts.coded import attention_error as coded_error
from gpu_kernels_parts.coded import bytes_error
from gpu_kernels_parts.loads import MODELS, Batch
from gpu_kernels_parts.sweep import SHAPES, WORKS, candidates


def small_calls(sweeping: bool, coded: bool) -> Iterator[Callable[[], Any]]:
    """Give a small call of every own kernel that is going to be timed or checked."""
    if not sweeping:
        for (heads, rank, rope), block_size in itertools.product(CODED_SHAPES, (64, 16)):
            requests, splits = (DECODE, 3) if block_size == 64 else (MIXED, 1)
            yield functools.partial(coded_error, heads, rank, rope, requests, splits, block_size)
            yield functools.partial(bytes_error, heads, rank, rope)
    if coded:
        return
    if sweeping:
        for (heads, rank, rope), (*_, new) in itertools.product(SHAPES, WORKS):
            for tiles in candidates(heads, rank, rope, new):
                batch = Batch(max(1024, new), 1, new, 64)
                yield functools.partial(_first, "own", heads, rank, rope, batch, tiles)
        return
    for model, new, block_size in itertools.product(MODELS, (1, 1024), (64, 16)):
        for rank, rope in model.widths:
            batch = Batch(1024, 1, new, block_size)
            yield functools.partial(_first, "own", model.heads, rank, rope, batch)
    for case in check_cases():
        yield functools.partial(attention_error, *case)


def _first(*arguments: Any) -> None:
    latent_calls(*arguments)[0]()
    torch.cuda.synchronize()


def compile_some(index: int, count: int, sweeping: bool, coded: bool) -> None:
    """Compile every ``count``-th kernel; Triton keeps them on disk. Failures show up later."""
    for call in itertools.islice(small_calls(sweeping, coded), index, None, count):
        with contextlib.suppress(Exception):
            call()


def compile_all(sweeping: bool, coded: bool, limit: float = 60) -> None:
    """Compile kernels in several processes; after ``limit`` seconds, leave the rest for later."""
    count = max(1, min(4, (os.cpu_count() or 4) // 4))
    print(f"compiling kernels in {count} processes, {limit:.0f} s at most", flush=True)
    end = time.monotonic() + limit
    with multiprocessing.get_context("spawn").Pool(count) as pool:  # it ends with its processes
        parts = [pool.apply_async(compile_some, (i, count, sweeping, coded)) for i in range(count)]
        for part in parts:
            with contextlib.suppress(multiprocessing.TimeoutError):
                part.get(max(0, end - time.monotonic()))
        done = sum(part.ready() for part in parts)
    print(f"{done} of {count} have compiled all of theirs", flush=True)
