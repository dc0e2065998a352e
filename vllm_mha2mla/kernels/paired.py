"""Blocks in the order of ``csrc/paired.h``, and their rows in the usual order."""

import torch
from torch import Tensor

GROUP = 8
"""Rows of a group, and columns of a pair of tiles."""

VARIANTS = ("avx512bf16", "amx")
"""Instruction sets that multiply pairs of bfloat16."""


def in_pairs(isa: str | None, cache: Tensor) -> bool:
    """Tell if a kernel keeps a cache in pairs.

    Args:
        isa: its instruction set; ``None`` for kernels of another kind.
        cache: # [blocks, block_size, width]
    """
    if isa not in VARIANTS or cache.dtype != torch.bfloat16:
        return False
    block_size, width = cache.shape[1:]
    return width % 2 == 0 and block_size % GROUP == 0 and cache.stride(1) == width


def in_rows(blocks: Tensor) -> Tensor:
    """Rows of blocks that lie in pairs  # [blocks, block_size, width] -> the same"""
    count, block_size, width = blocks.shape
    groups = blocks.reshape(count, block_size // GROUP, GROUP * width)
    columns = []
    for column in range(0, width, GROUP):
        here = min(GROUP, width - column)
        tiles = groups[..., GROUP * column : GROUP * (column + here)]
        tiles = tiles.unflatten(-1, (2, here // 2, 4, 2))  # tile, pair, row, column of a pair
        columns.append(tiles.transpose(-3, -2).flatten(-2).flatten(-3, -2))  # [..., 8, here]
    return torch.cat(columns, dim=-1).flatten(1, 2)
