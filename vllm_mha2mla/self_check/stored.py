"""The rows that a kernel has left in some blocks of a cache."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vllm_mha2mla.coding.packing import byte_places
from vllm_mha2mla.kernels.paired import in_pairs, in_rows

if TYPE_CHECKING:
    from vllm_mha2mla.self_check.reference import Subject


class StoredBlocks:
    """Copies of some blocks on the CPU, with rows in their usual order.

    Args:
        subject: the layer.
        numbers: of the blocks.
        places: from ``row_places``.
    """

    def __init__(self, subject: "Subject", numbers: Sequence[int], places: Tensor) -> None:
        self.numbers, self.places = list(numbers), places
        blocks = subject.cache[self.numbers].cpu()  # [copied, block_size, row]
        if in_pairs(subject.isa, subject.cache):
            blocks = in_rows(blocks)
        self.flat, self.block_size = blocks.flatten(1), blocks.shape[1]  # [copied, block's numbers]

    def local(self, slots: Tensor) -> Tensor:
        """Slots of the cache as slots of the copies  # [tokens], int64"""
        index = [self.numbers.index(block) for block in (slots // self.block_size).tolist()]
        return torch.tensor(index, device="cpu") * self.block_size + slots % self.block_size

    def at(self, slots: Tensor) -> Tensor:
        """The numbers of rows, or the bytes of coded ones  # [tokens, row]"""
        return self.flat[self._places(slots)]

    def differ_only_at(self, slots: Tensor, before: "StoredBlocks") -> bool:
        """Tell if all other rows are the same as before."""
        expected, places = before.flat.clone(), self._places(slots)
        expected[places] = self.flat[places]
        return torch.equal(expected, self.flat)

    def _places(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Copies of rows, and places there  # [tokens, 1], [tokens, row]"""
        local = self.local(slots)
        return (local // self.block_size)[:, None], self.places[local % self.block_size]


def row_places(subject: "Subject") -> Tensor:
    """Where the numbers or bytes of each row lie in their block  # [block_size, row], int64"""
    _, block_size, row = subject.cache.shape
    offsets = torch.arange(block_size, device="cpu")
    if subject.coded is not None:
        return byte_places(subject.coded.code, offsets)
    return offsets[:, None] * row + torch.arange(row, device="cpu")
