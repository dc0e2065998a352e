"""Time the latent attention kernel against this machine's limits and against vLLM's own kernel.

vLLM's kernel computes grouped-query attention on the original's shapes. With ``--row-bits`` the
same kernel is timed on coded rows too, beside the uncoded ones of ``--rank`` and ``--rope``.

Every call works on another layer's cache, as in a model, so the data that is timed comes from
memory and not from the processor's caches. Kernels take turns, and the fastest of several rounds
counts, because other programs only ever add time. With one thread the clock is the thread's
processor time, for the same reason. The limit of a case is the longer of two times: reading its
cache rows at the measured bandwidth, and doing its multiplications at the measured peak.
"""

import argparse
import ctypes
import functools
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from conversion.runtime.numbers import ceil_div
from vllm_mha2mla.coding.row_code import CodedRow, RowCode
from vllm_mha2mla.config import LatentWidths
from vllm_mha2mla.kernels import build, cpu
from vllm_mha2mla.kernels.coded_structures import CodedLayer

PEAKS = Path(__file__).with_name("kernel_peaks.cpp")
BLOCK = 128
# More than the last level of caches holds, and how much of the machine's memory to use at most.
COLD_BYTES, LARGEST_BYTES = 256 << 20, 3 << 30
LAYERS = 30


@dataclass(frozen=True)
class Shape:
    """The shapes of a model's attention, original and converted.

    The command line's defaults are SmolLM2-135M, converted to 31.25 % of its cache.
    """

    heads: int
    rank: int
    rope: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype

    @property
    def width(self) -> int:
        """Numbers of one latent cache row."""
        return self.rank + self.rope


@dataclass(frozen=True)
class Peaks:
    """Bytes and multiplications per second."""

    read: float
    copy: float
    multiply: float


def measure_peaks(threads: int) -> Peaks:
    """Measure the machine's peaks: the best of several rounds, summed over all threads."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "peaks.so"
        flags = ["-std=c++17", "-O3", "-march=native", "-shared", "-fPIC"]
        subprocess.run([build.compiler(), *flags, str(PEAKS), "-o", str(path)], check=True)
        library = ctypes.CDLL(str(path))
    for name in ("read_rate", "copy_rate", "multiply_rate"):
        getattr(library, name).restype = ctypes.c_double
    sources = [torch.ones(COLD_BYTES // 8, dtype=torch.int64) for _ in range(threads)]
    targets = [torch.ones_like(source) for source in sources]

    def read(i: int) -> float:
        words = ctypes.c_int64(sources[i].numel())
        return float(library.read_rate(ctypes.c_void_p(sources[i].data_ptr()), words))

    def copy(i: int) -> float:
        pointers = (ctypes.c_void_p(t[i].data_ptr()) for t in (targets, sources))
        return float(library.copy_rate(*pointers, ctypes.c_int64(COLD_BYTES)))

    def multiply(_: int) -> float:
        return float(library.multiply_rate())

    with ThreadPoolExecutor(threads) as pool:
        best = [max(sum(pool.map(f, range(threads))) for _ in range(7)) for f in (read, copy)]
        best.append(max(sum(pool.map(multiply, range(threads))) for _ in range(7)))
    return Peaks(*best)


@dataclass(frozen=True)
class Batch:
    """Requests of one length with ``new`` tokens each, in shuffled blocks."""

    requests: int
    context: int
    new: int = 1

    @property
    def tokens(self) -> int:
        """The number of new tokens of all requests."""
        return self.requests * self.new

    def tables(self) -> tuple[Tensor, Tensor, Tensor]:
        """Make the block table, the first query of each request, and the lengths."""
        blocks = ceil_div(self.context, BLOCK)
        order = torch.randperm(self.requests * blocks, dtype=torch.int32)
        starts = torch.arange(self.requests + 1, dtype=torch.int32) * self.new
        lengths = torch.full((self.requests,), self.context, dtype=torch.int32)
        return order.view(self.requests, blocks), starts, lengths


def latent_calls(
    shape: Shape, batch: Batch, layers: int, isa: str | None
) -> list[Callable[[], None]]:
    """Prepare one call of our kernel for each of several layers."""
    kernel = cpu.CpuKernel(build.library(), isa)
    table, starts, lengths = batch.tables()
    query = torch.randn(batch.tokens, shape.heads, shape.width).to(shape.dtype)
    out = query.new_empty(batch.tokens, shape.heads, shape.rank)
    one = torch.randn(table.numel(), BLOCK, shape.width).to(shape.dtype)
    scale = shape.head_dim**-0.5

    def call(cache: Tensor) -> None:
        kernel.latent_attention(query, cache, table, starts, lengths, scale, out)

    return [functools.partial(call, one.clone()) for _ in range(layers)]


def row_code(description: str) -> RowCode:
    """Parse the units of a row: ``6*3,4*28/4*6``, latent units and those of a rotary half."""
    parts = []
    for part in description.split("/"):
        counts = [group.split("*") for group in part.split(",") if group]
        parts.append([int(bits) for bits, count in counts for _ in range(int(count))])
    latent, rotary = parts
    return RowCode(LatentWidths(8 * len(latent), 16 * len(rotary)), (*latent, *rotary, *rotary))


def coded_calls(
    shape: Shape, code: RowCode, batch: Batch, layers: int, isa: str | None
) -> list[Callable[[], None]]:
    """Prepare the same calls on coded rows."""
    kernel = cpu.CpuKernel(build.library(), isa)
    table, starts, lengths = batch.tables()
    rank, rope = code.widths.kv_lora_rank, code.widths.qk_rope_head_dim
    query = torch.randn(batch.tokens, shape.heads, rank + rope).to(shape.dtype)
    out = query.new_empty(batch.tokens, shape.heads, rank)
    one = torch.randint(256, (table.numel(), BLOCK, code.row_bytes)).to(torch.uint8)
    # Scales of size 1: those of a group's eight rows are its last bytes.
    one.view(-1, 8 * code.row_bytes)[:, -16:] = 128
    row = CodedRow(code, torch.randn(rope), torch.randn(rank + rope))
    layer = CodedLayer(row, torch.logspace(0, -4, rope // 2))
    scale = shape.head_dim**-0.5 / 4

    def call(cache: Tensor) -> None:
        kernel.latent_attention(query, cache, table, starts, lengths, scale, out, layer)

    return [functools.partial(call, one.clone()) for _ in range(layers)]


def grouped_calls(shape: Shape, batch: Batch, layers: int) -> list[Callable[[], None]]:
    """Prepare the same calls of vLLM's kernel."""
    from vllm import _custom_ops as ops
    from vllm import envs
    from vllm.v1.attention.backends.cpu_attn import _get_attn_isa

    table, starts, lengths = batch.tables()
    query = torch.randn(batch.tokens, shape.heads, shape.head_dim).to(shape.dtype)
    out = torch.empty_like(query)
    isa = _get_attn_isa(shape.dtype, BLOCK, shape.head_dim)
    plan = ops.cpu_attn_get_scheduler_metadata(
        num_reqs=batch.requests,
        num_heads=shape.heads,
        num_kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        seq_lens=lengths,
        dtype=shape.dtype,
        query_start_loc=starts,
        causal=True,
        sliding_window_size=-1,
        isa=isa,
        enable_kv_split=envs.VLLM_CPU_ATTN_SPLIT_KV,
    )
    one = torch.randn(table.numel(), shape.kv_heads, 2 * BLOCK, shape.head_dim).to(shape.dtype)

    def call(cache: Tensor) -> None:
        keys, values = cache.chunk(2, dim=2)
        ops.cpu_attention_with_kv_cache(
            query=query,
            key_cache=keys,
            value_cache=values,
            output=out,
            query_start_loc=starts,
            seq_lens=lengths,
            scale=shape.head_dim**-0.5,
            causal=True,
            alibi_slopes=None,
            sliding_window=-1,
            block_table=table,
            softcap=0,
            scheduler_metadata=plan,
            s_aux=None,
        )

    return [functools.partial(call, one.clone()) for _ in range(layers)]


def seconds_per_call(calls: list[Callable[[], None]], least: float) -> float:
    """Time one round through all layers, of at least ``least`` seconds, and return its mean."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    done, start = 0, clock()
    while done < len(calls) or clock() - start < least:
        calls[done % len(calls)]()
        done += 1
    return (clock() - start) / done


def measure(shape: Shape, batch: Batch, peaks: Peaks, arguments: Any) -> str:
    """Time one batch and return its line of the table."""
    row_bytes = 2 * shape.kv_heads * shape.head_dim * shape.dtype.itemsize
    held = batch.requests * batch.context * row_bytes
    layers = max(1, min(LAYERS, LARGEST_BYTES // held // 2, ceil_div(COLD_BYTES, held) * 4))
    kernels = [latent_calls(shape, batch, layers, arguments.isa)]
    if arguments.row_bits:
        kernels.append(coded_calls(shape, arguments.row_bits, batch, layers, arguments.isa))
    if arguments.vllm:
        kernels.append(grouped_calls(shape, batch, layers))
    best = [float("inf")] * len(kernels)
    for _ in range(arguments.rounds):
        for i, calls in enumerate(kernels):
            best[i] = min(best[i], seconds_per_call(calls, arguments.seconds))

    # New tokens see all of the context but what comes after them.
    pairs = batch.requests * batch.new * (batch.context - (batch.new - 1) / 2)
    read = batch.requests * batch.context * shape.width * shape.dtype.itemsize
    memory = read / peaks.read
    arithmetic = pairs * shape.heads * (shape.width + shape.rank) / peaks.multiply
    limit = max(memory, arithmetic)
    cells = [
        f"{batch.context:7} {batch.requests:5} {batch.new:5} {best[0] * 1e6:10.1f}",
        f"{read / best[0] / 1e9:7.1f}",
        f"{limit / best[0]:7.0%} {'memory' if memory > arithmetic else 'arithmetic':>11}",
    ]
    if arguments.row_bits:
        cells.append(f"{best[1] * 1e6:11.1f} {best[0] / best[1]:10.2f}")
    if arguments.vllm:
        cells.append(f"{best[-1] * 1e6:11.1f} {best[-1] / best[0]:8.2f}")
    return " ".join(cells)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--contexts", type=int, nargs="+", default=[128, 1024, 8192, 32768])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 16, 64])
    parser.add_argument("--prefill", type=int, nargs="*", default=[1024, 4096])
    parser.add_argument("--threads", type=int, default=1, help="vLLM's worker on 2 cores has one")
    parser.add_argument("--isa", help="instead of the best this CPU has")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument(
        "--row-bits",
        type=row_code,
        help="coded rows: BITS*UNITS of the latent and of a rotary half, as in 6*3,4*28/4*6",
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.1, help="of one round at least")
    parser.add_argument("--no-vllm", dest="vllm", action="store_false")
    for name, default in Shape(9, 80, 40, 3, 64, torch.bfloat16).__dict__.items():
        if name != "dtype":
            parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    shape = Shape(
        arguments.heads,
        arguments.rank,
        arguments.rope,
        arguments.kv_heads,
        arguments.head_dim,
        getattr(torch, arguments.dtype),
    )
    peaks = measure_peaks(arguments.threads)
    print(f"{shape}\n{arguments.threads} threads, kernel for {arguments.isa or 'the best ISA'}")
    print(
        f"read {peaks.read / 1e9:.1f} GB/s, copy {peaks.copy / 1e9:.1f} GB/s, "
        f"{peaks.multiply / 1e9:.0f} G multiplications/s\n"
    )
    header = "context batch   new   ours (us)    GB/s of limit    bound by"
    if arguments.row_bits:
        print(f"coded rows: {arguments.row_bits.widths}, {arguments.row_bits.row_bytes} bytes\n")
        header += "  coded (us) ours/coded"
    print(header + ("   vLLM (us) vLLM/ours" if arguments.vllm else ""))
    for new in arguments.prefill:
        print(measure(shape, Batch(1, new, new), peaks, arguments), flush=True)
    for context in arguments.contexts:
        for requests in arguments.batches:
            print(measure(shape, Batch(requests, context), peaks, arguments), flush=True)


if __name__ == "__main__":
    main()
