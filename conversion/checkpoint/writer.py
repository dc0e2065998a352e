"""The weights of a checkpoint, spread over shards."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from conversion.checkpoint.shards import ShardWriter
from conversion.source.weight_files import INDEX, SINGLE


class CheckpointWriter:
    """The weights of a checkpoint, spread over shards; a block that fails closes its files.

    Args:
        folder: where to write.
        shard_sizes: name of each shard, with an upper bound on its tensors.
    """

    def __init__(self, folder: Path, shard_sizes: dict[str, int]) -> None:
        self.folder = folder
        self._shards = {name: ShardWriter(folder / name, n) for name, n in shard_sizes.items()}
        self._weight_map: dict[str, str] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_rest: object) -> None:
        if kind is not None:
            for shard in self._shards.values():
                shard.abandon()

    def write(self, name: str, tensor: Tensor, shard: str) -> None:
        """Append one tensor to a shard."""
        self.write_pieces(name, (tensor,), tuple(tensor.shape), tensor.dtype, shard)

    def write_pieces(
        self,
        name: str,
        pieces: Iterable[Tensor],
        shape: tuple[int, ...],
        dtype: torch.dtype,
        shard: str,
    ) -> None:
        """Append one tensor to a shard, given as consecutive blocks of its rows, in any dtype."""
        self._shards[shard].write_pieces(name, pieces, shape, dtype)
        self._weight_map[name] = shard

    def finish(self, config: Any, model_card: str) -> None:
        """Close the shards, then write index, model card and, last, config.json."""
        for shard in self._shards.values():
            shard.close()
        if set(self._shards) != {SINGLE}:
            total = sum(shard.bytes_written for shard in self._shards.values())
            index = {"metadata": {"total_size": total}, "weight_map": self._weight_map}
            (self.folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", "utf-8")
        (self.folder / "README.md").write_text(model_card, "utf-8")
        config.save_pretrained(self.folder)
