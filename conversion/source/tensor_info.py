"""A stored tensor, known without reading it."""

from dataclasses import dataclass

import torch

# Buffers that old exporters saved; transformers and vLLM compute them.
IGNORED_SUFFIXES = ("rotary_emb.inv_freq", "attn.masked_bias", "attn.bias")
ALL_ROWS = slice(None)


@dataclass(frozen=True)
class TensorInfo:
    """The place, shape and dtype of a tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    shard: str
