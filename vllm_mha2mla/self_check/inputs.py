"""Random queries and rows for a self-check, of sizes at which a fault shows.

Scores get a standard deviation of ``SPREAD`` from the latent and the same from the rotary columns,
whatever the weights are: with smaller ones all rows would count alike and a wrong score change
nothing, with larger ones only one row would count.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from vllm_mha2mla.coding.codebooks import codebook
from vllm_mha2mla.coding.row_code import CodedRow
from vllm_mha2mla.config import LatentWidths

SPREAD = 1.5
# Of a row's and a query's numbers; in 16 bits all of these are far from the limits.
SIZES = (2.0**-8, 2.0**8)


@dataclass(frozen=True)
class Sizes:
    """Standard deviations of what is drawn.

    Attributes:
        row: of a row's columns, before what a text's first row is relative to  # [rank + rope]
        query: of the numbers of every head's query  # [heads, nope + rope]
    """

    row: Tensor
    query: Tensor


def sizes(
    w_uk: Tensor, widths: LatentWidths, scale: float, heads: int, coded: CodedRow | None
) -> Sizes:
    """Choose the sizes of one layer's inputs.

    Args:
        w_uk: ``W_UK``, float32  # [groups, nope, rank]
        widths: of the layer.
        scale: factor of the scores.
        heads: query heads.
        coded: where rows are coded, how; the size of what is known of them is taken.
    """
    rank, rope = widths.kv_lora_rank, widths.qk_rope_head_dim
    row, mean = torch.ones(rank + rope, device="cpu"), torch.zeros(rope, device="cpu")
    if coded is not None:
        gains = torch.tensor([codebook(bits).gain for bits in coded.code.column_bits], device="cpu")
        first, mean = coded.first_row.float().cpu(), coded.rotary_mean.float().cpu()
        known = (first[:rank] / gains[:rank], first[rank:] / gains[rank:], mean / gains[rank:])
        latent, turned, of_mean = (_size(part) for part in known)
        row = gains * torch.cat(
            (torch.full((rank,), latent), torch.full((rope,), max(turned, of_mean)))
        )
    latent_scores = (w_uk.square() * row[:rank].square()).sum((1, 2)).sqrt()  # [groups]
    rotary_scores = (row[rank:].square() + mean.square()).sum().sqrt()
    groups, nope, _ = w_uk.shape
    query = torch.empty(heads, nope + rope, device="cpu")
    of_head = latent_scores.repeat_interleave(heads // groups)[:, None]
    query[:, :nope] = (SPREAD / (scale * of_head)).clamp(*SIZES)
    query[:, nope:] = (SPREAD / (scale * rotary_scores)).clamp(*SIZES)
    return Sizes(row, query)


def draw(
    sizes: Sizes, positions: Tensor, coded: CodedRow | None, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw a step's inputs, in float32.

    Args:
        sizes: of the layer.
        positions: of the tokens  # [tokens]
        coded: where rows are coded, how; a text's first row is near what it is coded against.
        generator: of the CPU.

    Returns:
        # [tokens, heads * (nope + rope)] and [tokens, rank + rope]
    """
    tokens = len(positions)
    query = torch.randn(tokens, *sizes.query.shape, generator=generator, device="cpu")
    rows = torch.randn(tokens, len(sizes.row), generator=generator, device="cpu") * sizes.row
    if coded is not None:
        rows += (positions == 0)[:, None] * coded.first_row.float().cpu()
    return (query * sizes.query).flatten(1), rows


def _size(part: Tensor) -> float:
    size = float(part.square().mean().sqrt()) if part.numel() else 0.0
    return min(max(size, SIZES[0]), SIZES[1]) if size else 1.0
