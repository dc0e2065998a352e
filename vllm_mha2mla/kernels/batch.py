"""One step's batch in the form that the kernels take."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass
class PagedBatch:
    """Requests of one step; ``reference.latent_attention`` says what the tensors mean.

    Attributes:
        num_tokens: number of new tokens; entries of a tensor beyond it are padding.
        step: made by the kernel in the first layer of a step, and reused by the others.
    """

    num_tokens: int
    query_start_loc: Tensor  # [requests + 1], int32
    seq_lens: Tensor  # [requests], int32
    block_table: Tensor  # [requests, max_blocks], int32
    slot_mapping: Tensor  # [tokens], int64
    step: Any = field(default=None, init=False, repr=False)
