"""Run the kernel, compiled with AddressSanitizer, over shapes; then let it read past a cache.

A process of its own, because the sanitizer's runtime has to be loaded before anything else. Torch
allocates through it, so every tensor ends where its memory ends. It knows nothing of masked loads,
so a cache ends where a page begins that must not be read.
"""

import ctypes
import itertools
import mmap
import sys

import torch

from vllm_mha2mla.coding.row_code import CodedRow, RowCode
from vllm_mha2mla.config import LatentWidths
from vllm_mha2mla.kernels import PagedBatch, build, cpu
from vllm_mha2mla.kernels.coded_structures import CodedLayer

FLAGS = ("-fsanitize=address", "-O1", "-g1", "-fno-omit-frame-pointer")
SHAPES = ((9, 80, 40), (3, 7, 6), (1, 1, 0), (5, 33, 2), (40, 16, 0), (2, 100, 6))
# Heads and bits: of the latent's units, and of the units of a rotary half.
CODES = ((9, (8, 6, 4, 3, 2, 1), (4, 3)), (3, (2,), ()), (40, (6, 4, 4), (1,)))
BATCHES = ([(1, 1)], [(200, 1), (16, 16), (97, 3)], [(33, 0), (130, 130)], [(800, 2)])
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


LIBC = ctypes.CDLL(None, use_errno=True)
NO_ACCESS = 0  # PROT_NONE


def before_a_forbidden_page(shape, dtype):
    """Zeros of this shape whose last number is the last of a page."""
    count = torch.Size(shape).numel()
    bytes_needed = count * dtype.itemsize
    size = -(-bytes_needed // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, size + mmap.PAGESIZE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    page = ctypes.c_void_p(start + size)
    assert LIBC.mprotect(page, ctypes.c_size_t(mmap.PAGESIZE), NO_ACCESS) == 0
    offset = size - bytes_needed
    return torch.frombuffer(memory, dtype=dtype, count=count, offset=offset).view(shape)


def run(kernel, batch, block_size, shape, cache_dtype, dtype, coded=None):
    heads, rank, rope = shape
    nope, v, width = rank // 2 + 1, rank // 3 + 1, rank + rope
    row = width if coded is None else coded.code.row_bytes
    inv_freq = torch.ones(rope // 2)
    coded_layer = None if coded is None else CodedLayer(coded, inv_freq)
    per_request = [-(-length // block_size) for length, _ in batch]
    # Exactly the blocks that are used; the last one ends the allocation.
    cache = before_a_forbidden_page((sum(per_request), block_size, row), cache_dtype)
    table = torch.zeros(len(batch), max(per_request), dtype=torch.int32)
    slots, positions, used = [], [], 0
    for index, (length, new) in enumerate(batch):
        own = torch.arange(used, used + per_request[index], dtype=torch.int32)
        table[index, : len(own)] = own
        used += len(own)
        position = torch.arange(length - new, length)
        slots.append(own[position // block_size].long() * block_size + position % block_size)
        positions.append(position)
    starts = torch.tensor([0, *(new for _, new in batch)], dtype=torch.int32)
    starts = starts.cumsum(0, dtype=torch.int32)
    lengths = torch.tensor([length for length, _ in batch], dtype=torch.int32)
    tokens = int(starts[-1])
    query = torch.ones(tokens, heads, width, dtype=dtype)
    out = torch.empty(tokens, heads, rank, dtype=dtype)
    kernel.write_latents(cache, query[:, 0], torch.cat(slots), coded_layer)
    kernel.latent_attention(query, cache, table, starts, lengths, 0.1, out, coded_layer)
    assert out.isfinite().all()
    weights = torch.ones(heads, nope + v, rank, dtype=dtype)
    layer = kernel.layer(
        cache, weights[:, :nope], weights[:, nope:], inv_freq, 0.1 / rank, heads, coded
    )
    step = PagedBatch(tokens, starts, lengths, table, torch.cat(slots))
    out = torch.empty(tokens, heads * v, dtype=dtype)
    query = torch.ones(tokens, heads * (nope + rope), dtype=dtype)
    layer(query, torch.ones(tokens, width, dtype=dtype), torch.cat(positions), step, out)
    assert out.isfinite().all()


def coded_row(latent_bits, rotary_bits):
    widths = LatentWidths(8 * len(latent_bits), 16 * len(rotary_bits))
    code = RowCode(widths, (*latent_bits, *rotary_bits, *rotary_bits))
    return CodedRow(code, torch.ones(16 * len(rotary_bits)), torch.ones(8 * len(code.unit_bits)))


def main():
    torch.set_num_threads(2)
    library = build.library(FLAGS)
    kernels = [cpu.CpuKernel(library, isa) for isa in cpu.supported(library)]
    block_sizes, dtypes = itertools.cycle((1, 16, 33, 8, 48)), itertools.cycle(DTYPES[:2])
    for kernel, shape, cache_dtype in itertools.product(kernels, SHAPES, DTYPES):
        for batch, dtype in zip(BATCHES, dtypes, strict=False):
            run(kernel, batch, next(block_sizes), shape, cache_dtype, dtype)
    for kernel, (heads, *bits) in itertools.product(kernels, CODES):
        coded = coded_row(*bits)
        widths = coded.code.widths
        shape = (heads, widths.kv_lora_rank, widths.qk_rope_head_dim)
        for batch, block_size, dtype in zip(BATCHES, (8, 16, 128, 48), dtypes, strict=False):
            run(kernel, batch, block_size, shape, torch.uint8, dtype, coded)
    sys.stdout.write("clean\n")
    sys.stdout.flush()
    cache, query = torch.zeros(1, 16, 8), torch.ones(1, 1, 8)
    past_the_end = torch.ones(1, 1, dtype=torch.int32)
    kernels[0].latent_attention(
        query, cache, past_the_end, torch.tensor([0, 1]), torch.tensor([16]), 1.0, query.clone()
    )


if __name__ == "__main__":
    main()
