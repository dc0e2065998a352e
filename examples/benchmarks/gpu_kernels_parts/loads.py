"""Models, batches and the lengths that are timed."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

COLD_BYTES = 512 << 20
LOADS = ((1024, 64), (8192, 1), (8192, 16), (8192, 64), (32768, 8))  # context, requests
PROMPTS = (8192, 16384)
DTYPE = torch.bfloat16


@dataclass(frozen=True)
class Model:
    """The original's attention, and the latent widths that are timed beside it."""

    name: str
    heads: int
    kv_heads: int
    head_dim: int
    widths: tuple[tuple[int, int], ...]  # rank, rope


MODELS = (
    Model("Llama-3-8B", 32, 8, 128, ((192, 64), (448, 64), (512, 64))),
    Model("SmolLM2-135M", 9, 3, 64, ((80, 40),)),
)


@dataclass
class Batch:
    """Requests of one length in a paged cache, their blocks in random order."""

    context: int
    requests: int
    new: int
    block_size: int
    table: Tensor = field(init=False)
    starts: Tensor = field(init=False)
    lengths: Tensor = field(init=False)

    def __post_init__(self) -> None:
        each = -(-self.context // self.block_size)
        self.blocks = each * self.requests
        order = torch.randperm(self.blocks, device="cuda", dtype=torch.int32)
        self.table = order.view(self.requests, each)
        self.starts = torch.arange(self.requests + 1, device="cuda", dtype=torch.int32) * self.new
        self.lengths = torch.full((self.requests,), self.context, device="cuda", dtype=torch.int32)

    def copies(self, row_bytes: int) -> int:
        """Give the number of caches that are more than the GPU's own cache holds."""
        if self.new > 1:
            return 1
        return max(1, min(64, -(-COLD_BYTES // (self.blocks * self.block_size * row_bytes))))
