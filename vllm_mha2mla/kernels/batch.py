"""One step's batch as the kernels want it."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass
class PagedBatch:
    """Requests of one step; ``reference.latent_attention`` says what the tensors mean.

    Attributes:
        num_tokens: new tokens; what a tensor holds beyond is padding.
        step: what a kernel has prepared of it, the same for every layer.
    """

    num_tokens: int
    query_start_loc: Tensor  # [requests + 1], int32
    seq_lens: Tensor  # [requests], int32
    block_table: Tensor  # [requests, max_blocks], int32
    slot_mapping: Tensor  # [tokens], int64
    step: Any = field(default=None, init=False, repr=False)
