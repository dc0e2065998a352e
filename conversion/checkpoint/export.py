"""Writing a source as a plain Hugging Face folder, for engines that cannot read its format."""

from collections import Counter
from pathlib import Path

import torch

from conversion.checkpoint.dtypes import written_dtype
from conversion.checkpoint.staging import staged_folder
from conversion.checkpoint.writer import CheckpointWriter
from conversion.runtime.progress import Progress
from conversion.source import SourceCheckpoint


def export(
    source: SourceCheckpoint,
    out: Path,
    dtype: torch.dtype | None,
    overwrite: bool,
    progress: Progress,
) -> None:
    """Write ``source`` to ``out``, a piece of a tensor at a time.

    Args:
        source: the checkpoint.
        out: the folder to create.
        dtype: of the written weights; ``None`` gives the source's if that has 16 bits, else
            bfloat16.
        overwrite: replace an existing checkpoint.
        progress: told about every tensor.

    Raises:
        OutputError: ``out`` exists or cannot be written.
        SourceError: a tensor is damaged.
    """
    source.check_assets()
    with staged_folder(out, overwrite, source.name) as folder:
        written = written_dtype(source, dtype)
        shards = Counter(info.shard for info in source.tensors.values())
        with CheckpointWriter(folder, shards) as writer:
            with progress.task("Writing", len(source.tensors)) as advance:
                for name, info in source.tensors.items():
                    pieces = source.pieces(name)
                    writer.write_pieces(name, pieces, info.shape, written, info.shard)
                    advance()
            config = type(source.config).from_dict(source.config.to_dict())
            config.architectures = [source.family.causal_lm.__name__]
            config.dtype = written
            source.write_assets(folder)
            writer.finish(config, f"# {source.name}, as a Hugging Face folder\n")
