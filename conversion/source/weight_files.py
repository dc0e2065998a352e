"""The files of a folder that hold the model's weights, as transformers chooses them."""

import json
from pathlib import Path
from typing import Any

from conversion.errors import SourceError
from conversion.source.kinds import no_safetensors

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


def weight_files(folder: Path, config: Any, name: str) -> tuple[list[str], dict[str, str]]:
    """The weight files of a folder, and the tensors that its index promises in each.

    Args:
        folder: the model's.
        config: its config; ``transformers_weights`` there names another file or index.
        name: how the user named the folder.

    Returns:
        names of files, and tensor -> file, which is empty without an index.

    Raises:
        SourceError: there are none, or two sets of which engines read different ones.
    """
    named = getattr(config, "transformers_weights", None)
    if named is not None:
        return _named(folder, named, name)
    if not (folder / INDEX).is_file():
        if not (folder / SINGLE).is_file():
            raise no_safetensors(folder, name, f"{SINGLE} nor {INDEX}")
        return [SINGLE], {}
    promised = read_index(folder / INDEX, name)
    files = sorted(set(promised.values()))
    if (folder / SINGLE).is_file() and SINGLE not in files:
        raise SourceError(
            f"{name}: holds two models: {SINGLE}, which transformers reads, and the files of "
            f"{INDEX}, which vLLM reads; move one of them away"
        )
    return files, promised


def read_index(path: Path, name: str) -> dict[str, str]:
    """The tensors that an index names, each with its file.

    Raises:
        SourceError: not an index, or one that names files of other folders.
    """
    try:
        index = json.loads(path.read_text("utf-8"))
        weight_map = index["weight_map"]
        if not isinstance(index.get("metadata", {}), dict):
            raise ValueError("its metadata are no mapping")
        # Outputs have shards of the same names: a path would be written wherever it leads.
        if not weight_map or any(Path(file).name != file for file in weight_map.values()):
            raise ValueError("a shard's name is a path")
        return {str(tensor): str(file) for tensor, file in weight_map.items()}
    except (ValueError, KeyError, AttributeError, TypeError, OSError, RecursionError) as error:
        raise SourceError(
            f"{name}: {path.name} is not a safetensors index; download the model again"
        ) from error


def _named(folder: Path, named: Any, name: str) -> tuple[list[str], dict[str, str]]:
    if not isinstance(named, str) or Path(named).name != named or not (folder / named).is_file():
        raise SourceError(
            f"{name}: config.json names the weights {named} (transformers_weights), which are not "
            "in the folder; download the model again"
        )
    if not named.endswith(".index.json"):
        return [named], {}
    promised = read_index(folder / named, name)
    return sorted(set(promised.values())), promised
