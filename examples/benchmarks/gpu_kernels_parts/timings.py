"""Times of attention beside the original's, and of the kernels around it."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import torch

from gpu_kernels_parts.calls import latent_calls, original_calls, variants
from gpu_kernels_parts.loads import DTYPE, LOADS, MODELS, PROMPTS, Batch
from gpu_kernels_parts.report import Report
from vllm_mha2mla.kernels.cuda.grouped_product import grouped_product
from vllm_mha2mla.kernels.cuda.rotate import rotate_and_write


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
