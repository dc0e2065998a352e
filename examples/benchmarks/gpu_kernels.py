"""Check and time the GPU kernels of latent attention beside FlashAttention on the original's cache.

    python examples/benchmarks/gpu_kernels.py --json kernels.json
    python examples/benchmarks/gpu_kernels.py --sweep

Every kernel is first compared with ``kernels/reference.py`` in float32. Then times, in microseconds
of one layer: decode for several contexts and batches, prefill of one request, and the kernel that
rotates and writes. A time is of one call within a CUDA graph of calls that each read another cache,
half a gigabyte in all, so that the GPU's own cache does not flatter; the median of several replays
counts. Beside it stand the bytes of cache that the layer has to read, over the time, and their
share of the bandwidth of a copy on the same GPU. A variant that fails prints why, and the rest goes
on. ``--sweep`` times sizes of the own kernel's tiles instead.
"""

import argparse
import contextlib
import functools
import itertools
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor

from vllm_mha2mla.kernels import reference
from vllm_mha2mla.kernels.cuda.attention import attend
from vllm_mha2mla.kernels.cuda.grouped_product import grouped_product
from vllm_mha2mla.kernels.cuda.rotate import rotate_and_write
from vllm_mha2mla.kernels.cuda.tuning import Tiles, choose_tiles, gpu_of, tiles_for
from vllm_mha2mla.rope import apply_rotary, rotary_angles

COLD_BYTES = 512 << 20
LOADS = ((1024, 64), (8192, 1), (8192, 16), (8192, 64), (32768, 8))  # context, requests
PROMPTS = (8192, 16384)
DTYPE = torch.bfloat16


@dataclass(frozen=True)
class Model:
    """The original's attention, and the latent widths that are timed beside it."""

    name: str
    heads: int
    kv_heads: int
    head_dim: int
    widths: tuple[tuple[int, int], ...]  # rank, rope


MODELS = (
    Model("Llama-3-8B", 32, 8, 128, ((192, 64), (448, 64), (512, 64))),
    Model("SmolLM2-135M", 9, 3, 64, ((80, 40),)),
)


@dataclass
class Batch:
    """Requests of one length in a paged cache, their blocks in random order."""

    context: int
    requests: int
    new: int
    block_size: int
    table: Tensor = field(init=False)
    starts: Tensor = field(init=False)
    lengths: Tensor = field(init=False)

    def __post_init__(self) -> None:
        each = -(-self.context // self.block_size)
        self.blocks = each * self.requests
        order = torch.randperm(self.blocks, device="cuda", dtype=torch.int32)
        self.table = order.view(self.requests, each)
        self.starts = torch.arange(self.requests + 1, device="cuda", dtype=torch.int32) * self.new
        self.lengths = torch.full((self.requests,), self.context, device="cuda", dtype=torch.int32)

    def copies(self, row_bytes: int) -> int:
        """Give the number of caches that are more than the GPU's own cache holds."""
        if self.new > 1:
            return 1
        return max(1, min(64, -(-COLD_BYTES // (self.blocks * self.block_size * row_bytes))))


def flash_attention() -> Callable[..., Any]:
    """VLLM's FlashAttention, in the version that it picks for this GPU."""
    from vllm.vllm_flash_attn import flash_attn_varlen_func

    version = 3 if torch.cuda.get_device_capability()[0] == 9 else 2
    return functools.partial(flash_attn_varlen_func, causal=True, fa_version=version)


def graph_time(calls: list[Callable[[], Any]], budget: float = 0.04) -> float:
    """Microseconds of one call, in a CUDA graph of all of them."""
    for call in calls[:2]:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    times: list[float] = []
    graph.replay()
    while len(times) < 3 or (sum(times) < budget * 1e3 and len(times) < 50):
        begin.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    del graph
    return sorted(times)[len(times) // 2] * 1e3 / len(calls)


class Report:
    """Rows of results, errors among them: printed at once, and kept in a file of one JSON a line.

    An illegal memory access leaves a process without its GPU. The process then ends with the exit
    status ``LOST``, and another one goes on with what the file does not have yet.
    """

    LOST = 75

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = path.read_text("utf-8").splitlines() if path.exists() else []
        self.rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
        if not self.rows:
            self.keep(
                {
                    "device": torch.cuda.get_device_name(),
                    "torch": torch.__version__,
                    "copy_bandwidth": copy_bandwidth(),
                    "started": time.time(),
                }
            )
        head = self.rows[0]
        self.copy_bandwidth, self.started = head["copy_bandwidth"], head["started"]
        if len(self.rows) == 1:
            bandwidth = self.copy_bandwidth / 1e12
            print(f"{head['device']}: a copy moves {bandwidth:.2f} TB/s", flush=True)

    def keep(self, row: dict[str, Any]) -> None:
        """Add a row to the file."""
        self.rows.append(row)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def add(self, measure: Callable[[], dict[str, Any]], **labels: Any) -> dict[str, Any] | None:
        """Measure, print and keep one row, unless it is there already; None if it failed."""
        labels = {name: str(value) for name, value in labels.items()}
        for row in self.rows:
            if labels.items() <= row.items():
                return None if "error" in row else row
        words = " ".join(labels.values())
        try:
            result = measure()
        except Exception as error:  # one variant's failure is a result like another
            lines = str(error).strip().splitlines() or [""]
            self.keep(labels | {"error": f"{type(error).__name__}: {lines[0]}"})
            print(f"{words:72} FAILED {type(error).__name__}: {lines[0][:150]}", flush=True)
            self.end_without_gpu()
            return None
        self.keep(labels | result)
        values = "  ".join(
            f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in result.items()
        )
        print(f"{words:72} {values}", flush=True)
        return result

    def end_without_gpu(self) -> None:
        """End this process if an error has left it without its GPU."""
        try:
            torch.cuda.synchronize()
            torch.zeros(1, device="cuda").item()
        except Exception:  # whatever it is, nothing works from here on
            os._exit(self.LOST)

    def timing(
        self, calls: Callable[[], list[Callable[[], Any]]], read: int = 0, beside: float = 0.0
    ) -> dict[str, Any]:
        """Time calls; ``read`` bytes of cache each, beside the original's microseconds."""
        microseconds = graph_time(calls())
        result: dict[str, Any] = {"us": microseconds}
        if read:
            bandwidth = read / microseconds * 1e6
            result["TB/s"] = bandwidth / 1e12
            result["of_copy"] = bandwidth / self.copy_bandwidth
        if beside:
            result["times_original"] = beside / microseconds
        return result


def copy_bandwidth() -> float:
    """Bytes read and written a second by a copy of 2 GiB, the faster of two ways to time it."""
    source = torch.empty(2 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)

    def copy() -> Tensor:
        return target.copy_(source)

    milliseconds: float = triton.testing.do_bench(copy, warmup=20, rep=100, return_mode="median")
    return 2 * source.numel() / min(graph_time([copy]) / 1e6, milliseconds / 1e3)


# Correctness


# Requests of (context length, new tokens).
DECODE = ((777, 1), (64, 1), (1, 1), (1500, 1))
MIXED = ((700, 1), (90, 90), (65, 3), (0, 0))


def check_cases() -> Iterator[tuple[Any, ...]]:
    """Give the arguments of ``attention_error``: every width, decode and mixed batches."""
    for width in ((32, 192, 64), (32, 448, 64), (32, 512, 64), (9, 80, 40), (8, 85, 38)):
        yield *width, DECODE, None, 16, DTYPE
        yield *width, DECODE, 3, 64, DTYPE
        yield *width, MIXED, 3, 16, DTYPE
        yield *width, MIXED, 1, 64, DTYPE
        yield *width, DECODE, 3, 64, DTYPE, True
        yield *width, MIXED, 1, 16, DTYPE, True
    yield 4, 80, 40, MIXED, 2, 16, torch.float16
    yield 4, 80, 40, MIXED, 2, 16, torch.float32


def check_kernels(report: Report) -> None:
    """Compare every kernel on this GPU with the reference in float32 on the CPU."""
    for case in check_cases():
        heads, rank, rope, batch, splits, block_size, dtype, *plain = case
        measure = functools.partial(attention_error, *case)
        shape = f"{heads} heads {rank}+{rope}"
        kind = "decode" if batch is DECODE else "mixed"
        kind += f" splits {splits} block {block_size} {str(dtype).removeprefix('torch.')}"
        what = "check attend, Triton" if plain else "check attend"
        report.add(measure, what=what, shape=shape, kind=kind)
    for heads, rank, rope in (
        (32, 192, 64),
        (32, 256, 64),
        (32, 448, 64),
        (32, 512, 64),
        (9, 296, 40),
    ):
        for variant in sorted({name for name, _ in variants(rank, rope) if "own" not in name}):
            for kind, batch in (("decode", DECODE), ("mixed", MIXED)):
                measure = functools.partial(flash_error, variant, heads, rank, rope, batch)
                shape = f"{heads} heads {rank}+{rope}"
                report.add(measure, what=f"check {variant}", shape=shape, kind=kind)
    for heads, rank, rope in ((32, 192, 64), (9, 80, 40), (4, 16, 0)):
        measure = functools.partial(rotation_error, heads, rank, rope)
        report.add(measure, what="check rotate", shape=f"{heads} heads {rank}+{rope}")


def attention_error(
    heads: int,
    rank: int,
    rope: int,
    batch: tuple[tuple[int, int], ...],
    splits: int | None,
    block_size: int,
    dtype: torch.dtype,
    plain: bool = False,
) -> dict[str, Any]:
    """The norm of the error over the norm of the result, and the largest error of a log-sum-exp."""
    lengths = torch.tensor([length for length, _ in batch], dtype=torch.int32)
    starts = torch.tensor([0, *(new for _, new in batch)]).cumsum(0).int()
    each = max(-(-length // block_size) for length, _ in batch)
    table = torch.randperm(each * len(batch) + 3)[: each * len(batch)].int().view(len(batch), each)
    padding = (0, -(rank + rope) % 8)  # of rows, to whole vectors, as the engine pads them
    cache = torch.randn(each * len(batch) + 3, block_size, rank + rope).to(dtype)
    cache = torch.nn.functional.pad(cache, padding)
    query = torch.randn(int(starts[-1]), heads, rank + rope).to(dtype)
    query = torch.nn.functional.pad(query, padding)
    scale = (rank + rope) ** -0.5
    expected = torch.zeros(len(query), heads, rank)
    reference.latent_attention(query, cache, table, starts, lengths, scale, expected)
    out = torch.full((len(query), heads, rank), float("nan"), dtype=dtype, device="cuda")
    lse = torch.full((len(query), heads), float("nan"), device="cuda")
    longest = max(new for _, new in batch), max(length for length, _ in batch)
    tensors = [t.cuda() for t in (query, cache, table, starts, lengths)]
    tiles = triton_tiles(heads * longest[0], rank, rope, tensors[1]) if plain else None
    arguments: list[Any] = [*tensors, *longest, scale, rank, rope, out, lse, splits, tiles]
    attend(*arguments)
    error = ((out.float().cpu() - expected).norm() / expected.norm()).item()
    first = cache[table[0].long()].flatten(0, 1)[: batch[0][0]].float()  # rows of request 0
    scores = query[0].float() @ first.T * scale  # its only query sees all of them
    lse_error = (lse[0].cpu() - scores.logsumexp(-1)).abs().max().item()
    limit = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]
    return {"error": error, "lse": lse_error, "ok": error < limit and lse_error < limit}


def flash_error(
    variant: str, heads: int, rank: int, rope: int, batch: tuple[tuple[int, int], ...]
) -> dict[str, Any]:
    """The norm of FlashAttention's error over the norm of the result."""
    lengths = torch.tensor([length for length, _ in batch], dtype=torch.int32)
    starts = torch.tensor([0, *(new for _, new in batch)]).cumsum(0).int()
    each = max(-(-length // 16) for length, _ in batch)
    table = torch.randperm(each * len(batch)).int().view(len(batch), each)
    cache = torch.randn(each * len(batch), 16, rank + rope).to(DTYPE)
    query = torch.randn(int(starts[-1]), heads, rank + rope).to(DTYPE)
    scale = (rank + rope) ** -0.5
    expected = torch.zeros(len(query), heads, rank)
    reference.latent_attention(query, cache, table, starts, lengths, scale, expected)
    tensors = flash_tensors(variant, query.cuda(), cache.cuda(), rank)
    out = flash_attention()(
        **tensors, max_seqlen_q=max(new for _, new in batch), cu_seqlens_q=starts.cuda(),
        max_seqlen_k=max(length for length, _ in batch), seqused_k=lengths.cuda(),
        softmax_scale=scale, block_table=table.cuda(),
    )  # fmt: skip
    error = ((out[..., :rank].float().cpu() - expected).norm() / expected.norm()).item()
    return {"error": error, "ok": error < 1e-2}


def rotation_error(heads: int, rank: int, rope: int) -> dict[str, Any]:
    """The largest error of a row and of a query, in float32, at positions up to a million."""
    tokens, nope, width = 33, 64, rank + rope + 8
    query = torch.randn(tokens, heads * (nope + rope))
    kv_latent = torch.randn(tokens, rank + rope)
    positions = torch.randint(1 << 20, (tokens,))
    slots = torch.randperm(128)[:tokens]
    slots[-1] = -1
    inv_freq = 1e5 ** -(torch.arange(rope // 2) / max(1, rope // 2))
    cache = torch.zeros(8, 16, width)
    cos, sin = rotary_angles(positions, inv_freq)
    rows = torch.cat((kv_latent[:, :rank], apply_rotary(kv_latent[:, rank:], cos, sin)), dim=-1)
    expected = cache.clone()
    reference.write_latents(expected[..., : rank + rope], rows, slots)
    turned = apply_rotary(
        query.view(tokens, heads, -1)[..., nope:], cos.unsqueeze(1), sin.unsqueeze(1)
    )
    on_gpu, q_out = cache.cuda(), torch.zeros(tokens, heads, width, device="cuda")
    tensors = [t.cuda() for t in (query, kv_latent, positions, slots, inv_freq)]
    arguments: list[Any] = [*tensors, q_out, on_gpu, nope, rank]
    rotate_and_write(*arguments)
    error = (on_gpu.cpu() - expected).abs().max().item()
    if rope:
        of_query = q_out[..., rank : rank + rope].cpu() - turned
        error = max(error, of_query.abs().max().item())
    return {"error": error, "ok": error < 1e-5}


# Speed


def original_calls(model: Model, batch: Batch) -> list[Callable[[], Any]]:
    """Grouped-query attention of the original's queries over its keys and values."""
    flash = flash_attention()
    row = 2 * model.kv_heads * model.head_dim
    caches = [
        torch.randn(
            batch.blocks, 2, batch.block_size, model.kv_heads, model.head_dim,
            device="cuda", dtype=DTYPE,
        )
        for _ in range(batch.copies(row * DTYPE.itemsize))
    ]  # fmt: skip
    tokens = batch.requests * batch.new
    query = torch.randn(tokens, model.heads, model.head_dim, device="cuda", dtype=DTYPE)
    return [
        functools.partial(
            flash, q=query, k=cache[:, 0], v=cache[:, 1], max_seqlen_q=batch.new,
            cu_seqlens_q=batch.starts, max_seqlen_k=batch.context, seqused_k=batch.lengths,
            softmax_scale=model.head_dim**-0.5, block_table=batch.table,
        )
        for cache in caches
    ]  # fmt: skip


def latent_calls(
    variant: str,
    heads: int,
    rank: int,
    rope: int,
    batch: Batch,
    tiles: Tiles | None = None,
    splits: int | None = None,
) -> list[Callable[[], Any]]:
    """Latent attention by the own kernel, by FlashAttention on whole rows, or with ``q_v``."""
    width, tokens = rank + rope, batch.requests * batch.new
    caches = [
        torch.randn(batch.blocks, batch.block_size, width, device="cuda", dtype=DTYPE)
        for _ in range(batch.copies(width * DTYPE.itemsize))
    ]
    query = torch.randn(tokens, heads, width, device="cuda", dtype=DTYPE)
    scale = width**-0.5
    if variant.startswith("own"):
        if variant == "own, Triton":
            tiles = triton_tiles(heads * batch.new, rank, rope, caches[0])
        out = torch.empty(tokens, heads, rank, device="cuda", dtype=DTYPE)
        return [
            functools.partial(
                attend, query, cache, batch.table, batch.starts, batch.lengths, batch.new,
                batch.context, scale, rank, rope, out, None, splits, tiles,
            )
            for cache in caches
        ]  # fmt: skip
    rest = {
        "max_seqlen_q": batch.new, "cu_seqlens_q": batch.starts, "max_seqlen_k": batch.context,
        "seqused_k": batch.lengths, "softmax_scale": scale, "block_table": batch.table,
    }  # fmt: skip
    flash = flash_attention()
    return [
        functools.partial(flash, **flash_tensors(variant, query, cache, rank), **rest)
        for cache in caches
    ]


def triton_tiles(queries: int, rank: int, rope: int, cache: Tensor) -> Tiles:
    """The tiles that a GPU without a kernel of its own would use."""
    queries = min(64, max(16, triton.next_power_of_2(queries)))
    return tiles_for(rank, rope, queries, gpu_of(cache.device), cache.element_size())


def flash_tensors(variant: str, query: Tensor, cache: Tensor, rank: int) -> dict[str, Tensor]:
    """The tensors that FlashAttention is given: for each way, the same scores and latents."""
    rows = cache.unsqueeze(2)
    if variant == "FlashAttention K=V":
        return {"q": query, "k": rows, "v": rows}
    if variant == "FlashAttention q_v":
        key = slice(rank, None)
        return {"q": query[..., key], "k": rows[..., key], "v": rows[..., :rank],
                "q_v": query[..., :rank]}  # fmt: skip
    return {"q": query[..., :0], "k": rows[..., :0], "v": rows, "q_v": query}


def variants(rank: int, rope: int) -> Iterator[tuple[str, int]]:
    """Kernels that take a width, and the block size that each is timed with."""
    yield "own", 16
    yield "own", 64
    yield "own, Triton", 64
    if rank + rope <= 256:
        yield "FlashAttention K=V", 16
        yield "FlashAttention K=V", 64
    if rope <= 64 and 256 <= rank <= 512:
        yield "FlashAttention q_v", 16
        yield "FlashAttention q_v", 64
    if 256 <= rank + rope <= 512:
        yield "FlashAttention q_v of rows", 16


def time_decode(report: Report) -> None:
    """Time a decode step of every model, original and converted."""
    time_attention(report, [(context, requests, 1) for context, requests in LOADS])


def time_prefill(report: Report) -> None:
    """Time the prefill of one request of every model, original and converted."""
    time_attention(report, [(length, 1, length) for length in PROMPTS])


def time_attention(report: Report, loads: list[tuple[int, int, int]]) -> None:
    """Time attention for loads of (context, requests, new tokens of each)."""
    for model, (context, requests, new) in itertools.product(MODELS, loads):
        what = "decode" if new == 1 else "prefill"
        load = f"{context} x {requests}"
        read = context * requests * 2 * model.kv_heads * model.head_dim * DTYPE.itemsize
        calls = functools.partial(original_calls, model, Batch(context, requests, new, 16))
        measure = functools.partial(report.timing, calls, read if new == 1 else 0)
        labels = {"what": what, "model": model.name, "load": load}
        original = report.add(measure, **labels, kernel="original FlashAttention")
        beside = original["us"] if original else 0.0
        for rank, rope in model.widths:
            read = context * requests * (rank + rope) * DTYPE.itemsize if new == 1 else 0
            for variant, block_size in variants(rank, rope):
                if new > 1 and block_size == 16 and "of rows" not in variant:
                    continue
                batch = Batch(context, requests, new, block_size)
                calls = functools.partial(latent_calls, variant, model.heads, rank, rope, batch)
                measure = functools.partial(report.timing, calls, read, beside)
                kernel = f"{rank}+{rope} {variant} block {block_size}"
                report.add(measure, **labels, kernel=kernel)
            torch.cuda.empty_cache()


def time_rotation(report: Report) -> None:
    """Time the kernel that rotates and writes, for Llama-3-8B's heads and 192 + 64."""
    heads, nope, rank, rope = 32, 128, 192, 64
    for tokens in (1, 64, 8192):
        query = torch.randn(tokens, heads * (nope + rope), device="cuda", dtype=DTYPE)
        latent = torch.randn(tokens, rank + rope, device="cuda", dtype=DTYPE)
        q_out = torch.empty(tokens, heads, rank + rope, device="cuda", dtype=DTYPE)
        cache = torch.zeros(1024, 16, rank + rope, device="cuda", dtype=DTYPE)
        at = torch.arange(tokens, device="cuda")
        inv_freq = torch.rand(rope // 2, device="cuda")
        call = functools.partial(
            rotate_and_write, query, latent, at, at, inv_freq, q_out, cache, nope, rank
        )
        report.add(
            functools.partial(report.timing, functools.partial(_repeated, call)),
            what="rotate",
            tokens=tokens,
        )


def time_products(report: Report) -> None:
    """Time the absorption of Llama-3-8B's queries, 8 groups of 4 heads, into 512 latents."""
    heads, groups, nope, rank = 32, 8, 128, 512
    weights = torch.randn(groups, nope, rank, device="cuda", dtype=DTYPE)
    for tokens in (1, 64, 8192):
        query = torch.randn(tokens, heads, nope, device="cuda", dtype=DTYPE)
        out = torch.empty(tokens, heads, rank, device="cuda", dtype=DTYPE)
        call = functools.partial(grouped_product, query, weights, out)
        measure = functools.partial(report.timing, functools.partial(_repeated, call))
        report.add(measure, what="grouped product", tokens=tokens)


def _repeated(call: Callable[[], None]) -> list[Callable[[], Any]]:
    return [call] * 4


# Sizes of tiles


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
    for queries, stages, by_hand in itertools.product(counts, (2, 3, 4, 5), (True, False)):
        for rows in (64, 128) if by_hand and new == 1 else (64,):
            tiles = Tiles(queries, rows, 4, stages, by_hand)
            fits = tiles.shared_memory(rank, rope, DTYPE.itemsize) <= limit
            if tiles != chosen and fits and rank * queries <= 512 * 32:
                yield tiles


# Kernels compiled side by side, before any is timed


def small_calls(sweeping: bool) -> Iterator[Callable[[], Any]]:
    """Give a small call of every own kernel that is going to be timed or checked."""
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
            if block_size == 64:
                yield functools.partial(_first, "own, Triton", model.heads, rank, rope, batch)
    for case in check_cases():
        yield functools.partial(attention_error, *case)


def _first(*arguments: Any) -> None:
    latent_calls(*arguments)[0]()
    torch.cuda.synchronize()


def compile_some(index: int, count: int, sweeping: bool) -> None:
    """Compile every ``count``-th kernel; Triton keeps them on disk. Failures show up later."""
    for call in itertools.islice(small_calls(sweeping), index, None, count):
        with contextlib.suppress(Exception):
            call()


def compile_all(sweeping: bool) -> None:
    """Compile all kernels in several processes."""
    count = max(1, min(10, (os.cpu_count() or 2) // 2))
    with multiprocessing.get_context("spawn").Pool(count) as pool:
        pool.starmap(compile_some, [(index, count, sweeping) for index in range(count)])


def main() -> None:
    """Check, time, write the report; again in a new process where the GPU was lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--sweep", action="store_true", help="time sizes of tiles instead")
    parser.add_argument("--seconds", type=float, default=240, help="limit of a sweep")
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)  # for the process that works
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("no CUDA device was found: this benchmark runs on an NVIDIA GPU")
    if arguments.rows:
        torch.manual_seed(0)
        report = Report(arguments.rows)
        if arguments.sweep:
            sweep(report, arguments.seconds)
        else:
            for part in (time_decode, check_kernels, time_prefill, time_rotation, time_products):
                part(report)
        return
    started = time.monotonic()
    compile_all(arguments.sweep)
    print(f"kernels compiled in {time.monotonic() - started:.0f} s", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows"
        command = [sys.executable, *sys.argv, "--rows", str(rows)]
        while (status := subprocess.run(command, check=False).returncode) == Report.LOST:
            pass
        print(f"{time.monotonic() - started:.0f} s", flush=True)
        if arguments.json and rows.exists():
            head, *results = (json.loads(line) for line in rows.read_text("utf-8").splitlines())
            text = json.dumps(head | {"rows": results}, indent=1)
            arguments.json.write_text(text + "\n", encoding="utf-8")
    sys.exit(status)


if __name__ == "__main__":
    main()
