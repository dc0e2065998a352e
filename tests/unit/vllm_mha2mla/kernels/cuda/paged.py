"""Batches in a paged cache for the GPU kernels' tests, and what attention over them must be."""

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Outputs are means of latents of size 1. In float32 only the order of sums differs; rounding a
# weight and an output to float16 is off by 2^-12 of each, to bfloat16 by 2^-9.
TOLERANCES = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
# Triton's interpreter multiplies bfloat16 matrices as if their bits were integers.
DTYPES = [torch.float32, torch.float16] + ([torch.bfloat16] if DEVICE == "cuda" else [])


class Paged:
    """Requests of (context length, new tokens) in shuffled blocks that have gaps between them.

    Whatever no request owns, in blocks, between them, and beside the rows' columns, is NaN.
    """

    def __init__(self, batch, heads, rank, rope, dtype, block_size=16, gap=0, padding=0, seed=0):
        self.rank, self.rope, self.scale, self.block_size = rank, rope, 0.3, block_size
        self.batch = batch
        generator = torch.Generator().manual_seed(seed)
        width = rank + rope
        needed = [-(-length // block_size) for length, _ in batch]
        blocks = torch.randperm(sum(needed) + 2, generator=generator).int()
        self.table = torch.full((len(batch), max(needed) + 1), -7, dtype=torch.int32)
        storage = torch.full((len(blocks), block_size * (width + padding) + gap), float("nan"))
        cache = storage[:, : block_size * (width + padding)].unflatten(1, (block_size, -1))
        self.rows, used = [], 0
        for request, (length, _) in enumerate(batch):
            own = blocks[used : used + needed[request]]
            used += needed[request]
            self.table[request, : len(own)] = own
            rows = torch.randn(length, width, generator=generator).to(dtype).float()
            at = torch.arange(length)
            cache[own[at // block_size].long(), at % block_size, :width] = rows
            self.rows.append(rows)
        storage = storage.to(dtype).to(DEVICE)
        cache = storage[:, : block_size * (width + padding)].unflatten(1, (block_size, -1))
        self.cache = cache[..., : width + padding]
        self.starts = torch.tensor([0, *(new for _, new in batch)]).cumsum(0).int()
        self.lengths = torch.tensor([length for length, _ in batch]).int()
        tokens = int(self.starts[-1])
        self.query = torch.randn(tokens, heads, width, generator=generator).to(dtype)

    def arguments(self, padded_tokens=0):
        """The arguments of ``attend`` before its outputs, queries padded by tokens of NaN."""
        query = torch.nn.functional.pad(
            self.query, (0, 0, 0, 0, 0, padded_tokens), value=float("nan")
        )
        tensors = (query, self.cache, self.table, self.starts, self.lengths)
        longest = max(new for _, new in self.batch), max(length for length, _ in self.batch)
        return *(t.to(DEVICE) for t in tensors), *longest, self.scale, self.rank, self.rope

    def expected(self):
        """Outputs  # [tokens, heads, rank], and log-sum-exp  # [tokens, heads], in float64"""
        outputs, sums = [], []
        for rows, start, end in zip(self.rows, self.starts, self.starts[1:], strict=False):
            queries = self.query[start:end].double()
            for t, query in enumerate(queries):
                visible = rows[: len(rows) - len(queries) + t + 1].double()
                scores = query @ visible.T * self.scale
                sums.append(scores.logsumexp(-1))
                outputs.append(scores.softmax(-1) @ visible[:, : self.rank])
        return torch.stack(outputs), torch.stack(sums)
