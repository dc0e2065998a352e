"""The weights of the new checkpoint: converted attentions, and all the rest as it was."""

from collections import Counter
from collections.abc import Collection, Iterable

import torch
from torch import Tensor

from conversion.checkpoint.writer import CheckpointWriter
from conversion.pipeline.layers import check_finite
from conversion.source import SourceCheckpoint
from vllm_mha2mla.config import CONSTANTS

# Tensors a converted layer has at most, above what its source's attention had.
CONVERTED_TENSORS = 8


def shard_sizes(source: SourceCheckpoint) -> dict[str, int]:
    """The shards of the new checkpoint, those of the source, with a bound on their tensors."""
    sizes = Counter(info.shard for info in source.tensors.values())
    for index in range(source.config.num_hidden_layers):
        sizes[source.attention(index).shard] += CONVERTED_TENSORS
    return dict(sizes)


def write_layers(
    source: SourceCheckpoint,
    writer: CheckpointWriter,
    layers: Iterable[dict[str, Tensor]],
    dtype: torch.dtype,
) -> None:
    """Write the converted tensors of all layers, each layer gone when the next is asked for.

    Args:
        source: the original, for names and shards.
        writer: of the new checkpoint.
        layers: from the first to the last.
        dtype: of all but the constants, which stay float32.

    Raises:
        OutputError: a tensor came out NaN or infinite.
    """
    for index, tensors in enumerate(layers):
        check_finite(index, tensors)
        prefix = source.family.attention_prefix(index)
        origin = source.attention(index)
        for name in list(tensors):
            tensor = tensors.pop(name)
            kept = torch.float32 if name in CONSTANTS else dtype
            shape = tuple(tensor.shape)
            writer.write_pieces(prefix + name, (tensor,), shape, kept, origin.shard)


def write_rest(
    source: SourceCheckpoint, writer: CheckpointWriter, dtype: torch.dtype, kept: Collection[int]
) -> None:
    """Write what no conversion changes: all that is no attention, and the attention of kept layers.

    Args:
        source: the original.
        writer: of the new checkpoint.
        dtype: of all tensors.
        kept: layers that keep their attention.
    """
    for name, info in source.tensors.items():
        if not source.family.in_attention(name, kept):
            pieces = source.pieces(name)
            writer.write_pieces(name, pieces, info.shape, dtype, info.shard)
