"""From the name a user gives to a checked source checkpoint."""

from functools import partial
from pathlib import Path

from conversion.errors import SourceError
from conversion.source.checkpoint import SourceCheckpoint
from conversion.source.demo import PREFIX, demo_model
from conversion.source.folder import FolderCheckpoint, read_config
from conversion.source.hub import hub_folder, looks_like_hub_id
from conversion.source.kinds import check_convertible


def open_source(source: str) -> SourceCheckpoint:
    """Open a folder, a ``.gguf`` file, ``demo:NAME`` or a model of the hub; check its tensors.

    Raises:
        SourceError: it does not exist, is of an unknown kind, or is damaged.
    """
    checkpoint = _open(source)
    checkpoint.check_tensors()
    return checkpoint


def _open(source: str) -> SourceCheckpoint:
    if source.startswith(PREFIX):
        return _open_gguf(demo_model(source), source)
    path = Path(source).expanduser()
    if path.is_dir():
        return FolderCheckpoint(path.resolve(), name=source)
    if path.suffix == ".gguf" and path.exists():
        return _open_gguf(path.resolve(), source)
    if path.exists():
        raise SourceError(f"{source}: neither a model folder nor a .gguf file")
    if looks_like_hub_id(source) and path.parent.is_dir():
        raise SourceError(
            f"{source}: the folder {path.parent} holds no {path.name}; if this is a model of the "
            f"hub: hf download {source} --local-dir {source}"
        )
    if looks_like_hub_id(source):
        return FolderCheckpoint(hub_folder(source, partial(_check_config, source)), name=source)
    raise SourceError(
        f"{source}: no such file or folder; give a model folder, a .gguf file, a model of the hub "
        "such as HuggingFaceTB/SmolLM2-135M, or demo:smollm2-135m"
    )


def _open_gguf(path: Path, name: str) -> SourceCheckpoint:
    # The package gguf imports much that folders do not need, and takes seconds.
    from conversion.source.gguf import GgufCheckpoint

    return GgufCheckpoint(path, name=name)


def _check_config(name: str, folder: Path) -> None:
    check_convertible(read_config(folder, name), name)
