"""The batches of a self-check, and the blocks that their rows lie in.

Two texts take the first, the middle and the last block that a request can get. Three steps make
every kind of batch: prefills; decodes; and a decode, a chunk of a longer text and a prefill
together. Blocks keep rows from step to step, and one is used again by another text.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

PREFILL = (12, 5)
"""New tokens of the first prefills."""

AROUND = 5
"""Tokens of a chunk on each side of the border between two blocks."""

DECODES = 8
"""Decodes in one step, spread over a text."""


@dataclass(frozen=True)
class Request:
    """New tokens of one text.

    Attributes:
        case: for the report.
        blocks: of the text, in its order.
        start: position of the first new token.
        end: the position after the last.
    """

    case: str
    blocks: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Batch:
    """The requests of one step: decodes first, as vLLM orders them."""

    requests: Sequence[Request]
    block_size: int

    @property
    def tokens(self) -> int:
        """New tokens of all requests."""
        return sum(request.end - request.start for request in self.requests)

    @property
    def starts(self) -> Tensor:
        """First token of each request, and the end  # [requests + 1], int32"""
        counts = accumulate((r.end - r.start for r in self.requests), initial=0)
        return torch.tensor(list(counts), dtype=torch.int32, device="cpu")

    @property
    def lengths(self) -> Tensor:
        """Context of each request, new tokens included  # [requests], int32"""
        return torch.tensor([r.end for r in self.requests], dtype=torch.int32, device="cpu")

    @property
    def positions(self) -> Tensor:
        """Position of each token  # [tokens], int64"""
        found = [n for r in self.requests for n in range(r.start, r.end)]
        return torch.tensor(found, device="cpu")

    @property
    def slots(self) -> Tensor:
        """``block * block_size + offset`` of each token  # [tokens], int64"""
        size = self.block_size
        found = [
            r.blocks[n // size] * size + n % size
            for r in self.requests
            for n in range(r.start, r.end)
        ]
        return torch.tensor(found, device="cpu")

    @property
    def table(self) -> Tensor:
        """Blocks of each request, and vLLM's block 0 behind them  # [requests, max], int32"""
        longest = 1 + max(len(request.blocks) for request in self.requests)
        padded = [[*r.blocks, *[0] * (longest - len(r.blocks))] for r in self.requests]
        return torch.tensor(padded, dtype=torch.int32, device="cpu")

    @property
    def cases(self) -> list[str]:
        """Each token's case and position, for the report."""
        return [f"{r.case}, position {n}" for r in self.requests for n in range(r.start, r.end)]


def batches(blocks: int, block_size: int, longest: int) -> Iterator[Batch]:
    """The steps of a self-check, one after the other.

    Args:
        blocks: of the cache. A request never gets block 0, where there is another.
        block_size: rows of a block.
        longest: tokens of the longest text that the engine takes.
    """
    first, middle, last = min(1, blocks - 1), blocks // 2, blocks - 1
    # The last block comes first, so that short texts reach its last row.
    text = tuple(dict.fromkeys((last, middle)))
    other = () if first in text else (first,)
    length = min(longest, len(text) * block_size)
    counts = [min(count, longest, block_size) for count in PREFILL]

    def requests(case: str, blocks: tuple[int, ...], start: int, end: int) -> list[Request]:
        return [Request(case, blocks, start, end)] if blocks and start < end else []

    yield Batch(
        requests("prefill", text, 0, counts[0]) + requests("prefill", other, 0, counts[1]),
        block_size,
    )
    end = length - 1
    chunk = range(max(counts[0], block_size - AROUND), min(end, block_size + AROUND))
    spread = {counts[0] + index * (end - counts[0]) // DECODES for index in range(DECODES)}
    decodes = sorted(n for n in spread - set(chunk) if counts[0] <= n < end)
    found = [r for n in decodes for r in requests("decode", text, n, n + 1)]
    if found:
        yield Batch(found, block_size)
    found = requests("decode", text, max(end, counts[0]), length)
    if chunk:
        found += requests("chunk", text, chunk.start, chunk.stop)
    # The block's rows are those of a text that is gone.
    found += requests("prefill", other, 0, counts[0] - counts[1])
    if found:
        yield Batch(found, block_size)
