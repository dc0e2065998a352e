"""Factors of equal size: the same attention, easier to train and to quantise."""

import torch
from torch import Tensor

from vllm_mha2mla.config import LatentWidths

# A column that nothing reads, or that nothing writes, keeps its size.
FLOOR = 1e-20


def balanced(tensors: dict[str, Tensor], heads: int, widths: LatentWidths) -> dict[str, Tensor]:
    """Scale every cached number so that what writes it is as large as what reads it.

    A latent number is a row of the down-projection times a column of the up-projection, a rotary
    pair two rows of keys times two of every head's query; a factor moved from one to the other
    changes nothing. The strategies leave them as their metric has them, over several orders of
    magnitude, and steps of one size (Adam) then change some not at all and wreck others: of 80
    steps of refinement at a learning rate that suits balanced factors, unbalanced ones get worse.

    Args:
        tensors: the ``self_attn`` tensors of a converted layer, one query matrix. That one is
            scaled where it is: it is the largest.
        heads: query heads.
        widths: its cache widths.

    Returns:
        the same tensors, with those replaced that change.
    """
    rope = widths.qk_rope_head_dim
    down, up = tensors["kv_a_proj_with_mqa.weight"], tensors["kv_b_proj.weight"]
    query = tensors["q_proj.weight"].unflatten(0, (heads, -1))  # [heads, nope + rope, inputs]
    columns = column_factors(tensors, heads, widths)
    latent, pairs = columns.split((widths.kv_lora_rank, rope))
    rows = torch.ones_like(query[0, :, 0])  # [nope + rope]
    rows[len(rows) - rope :] /= pairs
    scaled = {
        "kv_a_proj_with_mqa.weight": down * columns[:, None],
        "kv_b_proj.weight": up / latent,
        "q_proj.weight": query.mul_(rows[:, None]).flatten(0, 1),
    }
    if "q_proj.bias" in tensors:
        scaled["q_proj.bias"] = (tensors["q_proj.bias"].view(heads, -1) * rows).flatten()
        scaled["kv_a_proj_with_mqa.bias"] = tensors["kv_a_proj_with_mqa.bias"] * columns
    return tensors | scaled


def column_factors(tensors: dict[str, Tensor], heads: int, widths: LatentWidths) -> Tensor:
    """The factor that ``balanced`` gives each cached number  # [rank + rope]

    Args as for :func:`balanced`.
    """
    rank, rope = widths.kv_lora_rank, widths.qk_rope_head_dim
    down, up = tensors["kv_a_proj_with_mqa.weight"], tensors["kv_b_proj.weight"]
    query = tensors["q_proj.weight"].unflatten(0, (heads, -1))  # [heads, nope + rope, inputs]
    read = torch.linalg.vector_norm(query[:, query.shape[1] - rope :], dim=(0, 2)) ** 2  # [rope]
    latent = _factor(down[:rank].square().sum(1), up.square().sum(0))  # [rank]
    pairs = _factor(_pair_sums(down[rank:].square().sum(1)), _pair_sums(read))  # [rope / 2]
    return torch.cat((latent, pairs.repeat(2)))


def _factor(written: Tensor, read: Tensor) -> Tensor:
    """The factor of the writing side, from squared norms  # [n]"""
    useful = (written > FLOOR) & (read > FLOOR)
    return torch.where(useful, (read / written.clamp_min(FLOOR)) ** 0.25, 1.0)


def _pair_sums(squares: Tensor) -> Tensor:
    """Both numbers of a rotary pair turn together, and scale together  # [rope] -> [rope/2]"""
    return squares.view(2, -1).sum(0)
