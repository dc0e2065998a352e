"""Rows as they come out of a coded cache.

With ``y' = [z ; R_n u]`` the row of position ``n`` once RoPE has turned its rotary columns, ``f``
the first row and ``Q_b`` the codebook of each column's bits, each part of the row (latent, rotary)
becomes

    y' -> s Q_b((y' - f) / s) + f  at n = 0,    y' -> s Q_b(y' / s)  elsewhere,
    s = 2^(k/8),  k = round(8 log2 sqrt(mean_j (y'_j / g_j)^2))

with ``g`` the gains of the codebooks: ``s`` is the root mean square of the part, as a standard
normal would have 1, in 8 bits. A text's first token attracts attention and looks like no other.
"""

import functools

import torch
from torch import Tensor

from vllm_mha2mla.coding.codebooks import codebook
from vllm_mha2mla.coding.row_code import RowCode

STEPS_PER_OCTAVE = 8
SCALE_OF_ONE = 128
"""The stored byte of a scale of 1."""

SMALLEST = 2.0**-120  # keeps the logarithm of an empty part finite


def scale_of(byte: Tensor) -> Tensor:
    """``2^((byte - 128) / 8)``, float32  # [...] -> [...]"""
    return _scales().to(byte.device)[byte.long()]


def scale_bytes(rows: Tensor, gains: Tensor) -> Tensor:
    """The scale of one part of each row, as it is stored.

    Args:
        rows: one part of rows, float32  # [..., n]
        gains: of its columns  # [n]

    Returns:
        # [...], uint8
    """
    mean = (rows / gains).square().mean(-1)
    k = (mean.clamp_min(SMALLEST).log2() * (STEPS_PER_OCTAVE / 2)).round()
    return (k + SCALE_OF_ONE).clamp(0, 255).to(torch.uint8)


def encode(code: RowCode, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and scales of rows from which the first row is already taken.

    Args:
        code: of the layer.
        rows: ``y'``, float32  # [..., rank + rope]

    Returns:
        codes  # [..., rank + rope], uint8, and the bytes of both scales  # [..., 2], uint8
    """
    gains = _gains(code).to(rows.device)
    scales, relative = [], []
    for part, of_part in zip(_parts(code, rows), _parts(code, gains), strict=True):
        byte = torch.zeros(rows.shape[:-1], dtype=torch.uint8, device=rows.device)
        if part.shape[-1]:
            byte = scale_bytes(part, of_part)
        scales.append(byte)
        relative.append(part / scale_of(byte)[..., None])
    whole = torch.cat(relative, dim=-1)
    codes = torch.empty_like(whole, dtype=torch.uint8)
    for bits, columns in _columns_by_bits(code):
        here = columns.to(rows.device)
        codes[..., here] = codebook(bits).encode(whole[..., here]).to(torch.uint8)
    return codes, torch.stack(scales, dim=-1)


def decode(code: RowCode, codes: Tensor, scales: Tensor) -> Tensor:
    """Rows of these codes and scales, without the first row; the inverse of :func:`encode`."""
    whole = torch.empty(codes.shape, dtype=torch.float32, device=codes.device)
    for bits, columns in _columns_by_bits(code):
        here = columns.to(codes.device)
        whole[..., here] = codebook(bits).decode(codes[..., here].long())
    latent, rotary = scale_of(scales).split(1, dim=-1)  # [..., 1]
    z, u = _parts(code, whole)
    return torch.cat((z * latent, u * rotary), dim=-1)


def rounded(code: RowCode, rows: Tensor, first_row: Tensor, is_first: Tensor) -> Tensor:
    """Rows as they come out of the cache; gradients pass as if nothing were rounded.

    Args:
        code: of the layer.
        rows: ``y'``; computed in float32 whatever surrounds it  # [..., tokens, rank + rope]
        first_row: ``f``, float32  # [rank + rope]
        is_first: true at a text's first token  # [..., tokens]

    Returns:
        in the dtype of ``rows``  # [..., tokens, rank + rope]
    """
    with torch.no_grad():
        y = rows.detach().float()
        known = is_first[..., None] * first_row
        result = decode(code, *encode(code, y - known)) + known
    if not rows.requires_grad:
        return result.to(rows.dtype)
    return rows + (result - y).to(rows.dtype)


@functools.cache
def _scales() -> Tensor:
    """Every scale; in float64 first, so that all machines have the same  # [256], float32"""
    k = torch.arange(256, dtype=torch.float64, device="cpu") - SCALE_OF_ONE
    return torch.exp2(k / STEPS_PER_OCTAVE).float()


@functools.cache
def _gains(code: RowCode) -> Tensor:
    """Gain of every column's codebook  # [rank + rope], float32"""
    return torch.tensor([codebook(bits).gain for bits in code.column_bits], device="cpu")


@functools.cache
def _columns_by_bits(code: RowCode) -> list[tuple[int, Tensor]]:
    """The columns of each number of bits that occurs."""
    bits = torch.tensor(code.column_bits, device="cpu")
    return [(b, (bits == b).nonzero(as_tuple=True)[0]) for b in sorted(set(code.column_bits))]


def _parts(code: RowCode, rows: Tensor) -> tuple[Tensor, Tensor]:
    """[..., rank + rope] -> [..., rank], [..., rope]"""
    widths = code.widths
    latent, rotary = rows.split((widths.kv_lora_rank, widths.qk_rope_head_dim), dim=-1)
    return latent, rotary
