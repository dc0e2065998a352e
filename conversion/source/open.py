"""From what the user typed to a checked source checkpoint."""

from pathlib import Path

from conversion.errors import SourceError
from conversion.source.checkpoint import SourceCheckpoint
from conversion.source.demo import PREFIX, demo_model
from conversion.source.folder import FolderCheckpoint
from conversion.source.gguf import GgufCheckpoint


def open_source(source: str) -> SourceCheckpoint:
    """Open a folder, a ``.gguf`` file or ``demo:NAME``, and check its tensors.

    Raises:
        SourceError: it does not exist, is of an unknown kind, or is damaged.
    """
    checkpoint = _open(source)
    checkpoint.check_tensors()
    return checkpoint


def _open(source: str) -> SourceCheckpoint:
    if source.startswith(PREFIX):
        return GgufCheckpoint(demo_model(source), name=source)
    path = Path(source).expanduser()
    if not path.exists():
        raise SourceError(
            f"{source}: no such file or folder; give a model folder, a .gguf file or "
            "demo:smollm2-135m"
        )
    if path.is_dir():
        return FolderCheckpoint(path.resolve(), name=source)
    if path.suffix == ".gguf":
        return GgufCheckpoint(path.resolve(), name=source)
    raise SourceError(f"{source}: neither a model folder nor a .gguf file")
