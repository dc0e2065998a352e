"""Every kernel on this GPU against the reference in float32 on the CPU."""

import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from gpu_kernels_parts.calls import flash_attention, flash_tensors, variants
from gpu_kernels_parts.loads import DTYPE
from gpu_kernels_parts.report import Report
from vllm_mha2mla.kernels import reference
from vllm_mha2mla.kernels.cuda.attention import attend
from vllm_mha2mla.kernels.cuda.rotate import rotate_and_write
from vllm_mha2mla.rope import apply_rotary, rotary_angles

# Requests of (context length, new tokens).
DECODE = ((777, 1), (64, 1), (1, 1), (1500, 1))
MIXED = ((700, 1), (90, 90), (65, 3), (0, 0))


def check_cases() -> Iterator[tuple[Any, ...]]:
    """Give the arguments of ``attention_error``: every width, decode and mixed batches."""
    for width in ((32, 192, 64), (32, 448, 64), (32, 512, 64), (9, 80, 40), (8, 85, 38)):
        yield *width, DECODE, None, 16, DTYPE
        yield *width, MIXED, 3, 64, DTYPE
    yield 32, 192, 64, DECODE, 3, 64, DTYPE
    yield 32, 192, 64, MIXED, 1, 64, DTYPE
    yield 4, 80, 40, MIXED, 2, 16, torch.float16
    yield 4, 80, 40, MIXED, 2, 16, torch.float32


def check_kernels(report: Report) -> None:
    """Compare every kernel on this GPU with the reference in float32 on the CPU."""
    for case in check_cases():
        heads, rank, rope, batch, splits, block_size, dtype = case
        measure = functools.partial(attention_error, *case)
        shape = f"{heads} heads {rank}+{rope}"
        kind = "decode" if batch is DECODE else "mixed"
        kind += f" splits {splits} block {block_size} {str(dtype).removeprefix('torch.')}"
        report.add(measure, what="check attend", shape=shape, kind=kind)
    for heads, rank, rope in (
        (32, 192, 64),
        (32, 256, 64),
        (32, 448, 64),
        (32, 512, 64),
        (9, 296, 40),
    ):
        for variant in sorted({name for name, _ in variants(rank, rope) if name != "own"}):
            for kind, batch in (("decode", DECODE), ("mixed", MIXED)):
                measure = functools.partial(flash_error, variant, heads, rank, rope, batch)
                shape = f"{heads} heads {rank}+{rope}"
                report.add(measure, what=f"check {variant}", shape=shape, kind=kind)
    for heads, rank, rope in ((32, 192, 64), (9, 80, 40), (4, 16, 0)):
        measure = functools.partial(rotation_error, heads, rank, rope)
        report.add(measure, what="check rotate", shape=f"{heads} heads {rank}+{rope}")


def paged(
    batch: tuple[tuple[int, int], ...], block_size: int, spare: int = 0
) -> tuple[int, Tensor, Tensor, Tensor]:
    """Lay requests out in a paged cache, in blocks of any order.

    Args:
        batch: context length and new tokens of every request.
        block_size: rows of a block.
        spare: blocks that belong to no request.

    Returns:
        the number of blocks; the block table  # [requests, blocks of the longest]; the first query
        of each request  # [requests + 1]; the context lengths  # [requests]; all int32
    """
    lengths = torch.tensor([length for length, _ in batch], dtype=torch.int32)
    starts = torch.tensor([0, *(new for _, new in batch)]).cumsum(0).int()
    each = max(-(-length // block_size) for length, _ in batch)
    used = each * len(batch)
    table = torch.randperm(used + spare)[:used].int().view(len(batch), each)
    return used + spare, table, starts, lengths


def attention_error(
    heads: int,
    rank: int,
    rope: int,
    batch: tuple[tuple[int, int], ...],
    splits: int | None,
    block_size: int,
    dtype: torch.dtype,
) -> dict[str, Any]:
    """The norm of the error over the norm of the result, and the largest error of a log-sum-exp."""
    blocks, table, starts, lengths = paged(batch, block_size, spare=3)
    padding = (0, -(rank + rope) % 8)  # of rows, to whole vectors, as the engine pads them
    cache = torch.randn(blocks, block_size, rank + rope).to(dtype)
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
    arguments: list[Any] = [*tensors, *longest, scale, rank, rope, out, lse, splits]
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
    blocks, table, starts, lengths = paged(batch, 16)
    cache = torch.randn(blocks, 16, rank + rope).to(DTYPE)
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
