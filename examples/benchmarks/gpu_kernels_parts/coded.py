"""Coded rows: the kernels that read and write them, checked and timed beside plain rows."""

import functools
from collections.abc import Callable
from typing import Any

import torch

from gpu_kernels_parts.calls import latent_calls
from gpu_kernels_parts.checks import DECODE, MIXED, paged
from gpu_kernels_parts.loads import DTYPE, LOADS, Batch
from gpu_kernels_parts.report import Report
from vllm_mha2mla.coding.row_code import CodedRow, RowCode
from vllm_mha2mla.config import LatentWidths
from vllm_mha2mla.kernels import reference
from vllm_mha2mla.kernels.coded_reference import CodedCache
from vllm_mha2mla.kernels.cuda.attention import attend
from vllm_mha2mla.kernels.cuda.coded_tables import CodedTables, coded_tables
from vllm_mha2mla.kernels.cuda.encode import rotate_and_encode
from vllm_mha2mla.rope import apply_rotary, rotary_angles

# Heads, rank, rope: Llama-3-8B's heads over narrow and wide rows, SmolLM2-135M's over a usual one.
SHAPES = ((32, 192, 64), (32, 512, 64), (32, 1024, 192), (9, 256, 32))
# Shares of the latent's units at each number of bits: 3.3 bits a number, with the scales.
SHARES = ((6, 0.08), (4, 0.25), (3, 0.42), (2, 1.0))
ROTARY_BITS = (4, 3)


def row(rank: int, rope: int, device: str = "cpu") -> tuple[CodedRow, torch.Tensor]:
    """A code of about 3 bits a number, and frequencies of the rotary pairs."""
    units = rank // 8
    latent: list[int] = []
    for bits, share in SHARES:
        latent += [bits] * min(round(share * units), units - len(latent))
    half = [ROTARY_BITS[0] if unit < rope // 32 else ROTARY_BITS[1] for unit in range(rope // 16)]
    code = RowCode(LatentWidths(rank, rope), (*latent, *half, *half))
    vectors = torch.randn(rope), torch.randn(rank + rope)
    inv_freq = 1e5 ** -(torch.arange(rope // 2) / max(1, rope // 2))
    return CodedRow(code, *(vector.to(device) for vector in vectors)), inv_freq.to(device)


def tables(rank: int, rope: int, longest: int) -> CodedTables:
    """The tables of such a row on the GPU."""
    return coded_tables(*row(rank, rope, "cuda"), DTYPE, longest)


def check_coded(report: Report) -> None:
    """Compare attention over coded rows, and their bytes, with the reference in float32."""
    for heads, rank, rope in (*SHAPES, (8, 40, 0)):
        for kind, batch, block_size in (("decode", DECODE, 64), ("mixed", MIXED, 16)):
            for splits in (None, 1, 3):
                measure = functools.partial(
                    attention_error, heads, rank, rope, batch, splits, block_size
                )
                labels = {"shape": f"{heads} heads {rank}+{rope}", "kind": f"{kind} {splits}"}
                report.add(measure, what="check attend coded", **labels)
        measure = functools.partial(bytes_error, heads, rank, rope)
        report.add(measure, what="check encode", shape=f"{heads} heads {rank}+{rope}")


def attention_error(
    heads: int,
    rank: int,
    rope: int,
    batch: tuple[tuple[int, int], ...],
    splits: int | None,
    block_size: int,
) -> dict[str, Any]:
    """The norm of the error over the norm of the result, bytes random."""
    coded, inv_freq = row(rank, rope)
    blocks, table, starts, lengths = paged(batch, block_size)
    cache = _random_cache(blocks, block_size, coded.code)
    query = torch.randn(int(starts[-1]), heads, rank + rope).to(DTYPE)
    scale = (rank + rope) ** -0.5
    expected = torch.zeros(len(query), heads, rank)
    rows_of = CodedCache(cache, coded, inv_freq).rows
    reference.latent_attention(query, cache, table, starts, lengths, scale, expected, rows_of)
    out = torch.full((len(query), heads, rank), float("nan"), dtype=DTYPE, device="cuda")
    longest = max(new for _, new in batch), max(length for length, _ in batch)
    tensors = [t.cuda() for t in (query, cache, table, starts, lengths)]
    on_gpu = CodedRow(coded.code, coded.rotary_mean.cuda(), coded.first_row.cuda())
    made = coded_tables(on_gpu, inv_freq.cuda(), DTYPE, 2048)
    arguments: list[Any] = [*tensors, *longest, scale, rank, rope, out, None, splits, None, made]
    attend(*arguments)
    error = ((out.float().cpu() - expected).norm() / expected.norm()).item()
    return {"error": error, "ok": error < 1e-2}


def bytes_error(heads: int, rank: int, rope: int) -> dict[str, Any]:
    """The share of bytes that differ from the reference's; a number may lie on a border."""
    tokens, nope = 65, 64
    coded, inv_freq = row(rank, rope)
    rows = torch.randn(tokens, rank + rope)
    positions = torch.arange(tokens)
    slots = torch.randperm(128)[:tokens]
    slots[-1] = -1
    cache = _random_cache(8, 16, coded.code)
    on_gpu = cache.cuda()
    turned = apply_rotary(rows[:, rank:], *rotary_angles(positions, inv_freq))
    whole = torch.cat((rows[:, :rank], turned), dim=-1)
    CodedCache(cache, coded, inv_freq).write(whole, positions, slots)
    query = torch.randn(tokens, heads * (nope + rope), device="cuda")
    q_out = torch.zeros(tokens, heads, rank + rope, device="cuda")
    tensors = [t.cuda() for t in (rows, positions, slots, inv_freq)]
    vectors = CodedRow(coded.code, coded.rotary_mean.cuda(), coded.first_row.cuda())
    made = coded_tables(vectors, tensors[-1], torch.float32, 128)
    arguments: list[Any] = [query, *tensors, q_out, on_gpu, made, nope, rank]
    rotate_and_encode(*arguments)
    share = (on_gpu.cpu() != cache).float().mean().item()
    return {"error": share, "ok": share < 1e-3}


def time_coded(report: Report) -> None:
    """Time decode over coded rows beside plain rows of the same width, and the write."""
    for heads, rank, rope in SHAPES:
        shape = f"{heads} heads {rank}+{rope}"
        for context, requests in LOADS:
            batch = functools.partial(Batch, context, requests, 1, 64)
            labels = {"what": "decode coded", "shape": shape, "load": f"{context} x {requests}"}
            plain = functools.partial(latent_calls, "own", heads, rank, rope)
            read = context * requests * (rank + rope) * DTYPE.itemsize
            measure = functools.partial(_timed, report, plain, batch, read)
            before = report.add(measure, **labels, kernel="plain") if rank <= 512 else None
            made = tables(rank, rope, context)
            coded = functools.partial(coded_calls, heads, made)
            read = context * requests * made.code.row_bytes
            beside = before["us"] if before else 0.0
            measure = functools.partial(_timed, report, coded, batch, read, beside)
            report.add(measure, **labels, kernel=f"{made.code.row_bytes} bytes")
            torch.cuda.empty_cache()
        for tokens in (1, 64, 8192):
            measure = functools.partial(_timed_write, report, heads, rank, rope, tokens)
            report.add(measure, what="encode", shape=shape, tokens=tokens)


def coded_calls(heads: int, made: CodedTables, batch: Batch) -> list[Callable[[], Any]]:
    """Attention over coded rows, each call with another cache."""
    widths = made.code.widths
    rank, rope = widths.kv_lora_rank, widths.qk_rope_head_dim
    tokens = batch.requests * batch.new
    query = torch.randn(tokens, heads, rank + rope, device="cuda", dtype=DTYPE)
    out = torch.empty(tokens, heads, rank, device="cuda", dtype=DTYPE)
    copies = batch.copies(made.code.row_bytes)
    return [
        functools.partial(
            attend, query, _random_cache(batch.blocks, batch.block_size, made.code, "cuda"),
            batch.table, batch.starts, batch.lengths, batch.new, batch.context,
            (rank + rope) ** -0.5, rank, rope, out, tables=made,
        )
        for _ in range(copies)
    ]  # fmt: skip


def _timed(
    report: Report,
    calls: Callable[[Batch], list[Callable[[], Any]]],
    batch: Callable[[], Batch],
    read: int,
    beside: float = 0.0,
) -> dict[str, Any]:
    result = report.timing(lambda: calls(batch()), read)
    if beside:
        result["times_plain"] = beside / result["us"]
    return result


def _timed_write(report: Report, heads: int, rank: int, rope: int, tokens: int) -> dict[str, Any]:
    nope, made = 128, tables(rank, rope, tokens)
    query = torch.randn(tokens, heads * (nope + rope), device="cuda", dtype=DTYPE)
    latent = torch.randn(tokens, rank + rope, device="cuda", dtype=DTYPE)
    q_out = torch.empty(tokens, heads, rank + rope, device="cuda", dtype=DTYPE)
    cache = _random_cache(1024, 16, made.code, "cuda")
    at, inv_freq = torch.arange(tokens, device="cuda"), torch.rand(rope // 2, device="cuda")
    call = functools.partial(
        rotate_and_encode, query, latent, at, at, inv_freq, q_out, cache, made, nope, rank
    )
    return report.timing(lambda: [call] * 4)


def _random_cache(blocks: int, block_size: int, code: RowCode, device: str = "cpu") -> torch.Tensor:
    """Random codes, and scales near 1 as rows of ordinary size have them."""
    size = (blocks, block_size // 8, 8 * code.row_bytes)
    groups = torch.randint(256, size, dtype=torch.uint8, device=device)
    scales = torch.randint(120, 137, (*size[:2], 16), dtype=torch.uint8, device=device)
    groups[..., -16:] = scales
    return groups.view(blocks, block_size, code.row_bytes)
