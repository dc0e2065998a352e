"""The files beside the weights: everything that belongs to the model and is not made anew."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from conversion.errors import SourceError
from conversion.source.weight_files import INDEX

# Replaced by the converter's own, or weights in formats it does not write.
NOT_CARRIED_OVER = {"config.json", "README.md", INDEX}
WEIGHT_SUFFIXES = {".safetensors", ".bin", ".pth", ".pt", ".gguf", ".h5", ".msgpack", ".onnx"}
# Other weights of the same model have indexes too.
INDEX_ENDING = ".index.json"
# transformers reads a tokenizer's templates but the first from here.
TEMPLATES = "additional_chat_templates"


def copy_assets(source: Path, target: Path) -> None:
    """Copy every file but weights, config and README, and the chat templates, byte for byte.

    Raises:
        SourceError: as of :func:`check_assets`.
    """
    for path in _carried_over(source):
        copy = target / path.relative_to(source)
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(_followed(source, path), copy)


def check_assets(source: Path) -> None:
    """Refuse a folder that cannot be copied.

    Raises:
        SourceError: a file is a link to another place than the folder and the hub's cache: what
            it leads to may be anybody's secret, and would be published with the converted model.
    """
    for path in _carried_over(source):
        _followed(source, path)


def _carried_over(source: Path) -> Iterator[Path]:
    for path in sorted(source.iterdir()):
        if path.name in NOT_CARRIED_OVER or path.name.startswith("."):
            continue
        weights = path.suffix in WEIGHT_SUFFIXES or path.name.endswith(INDEX_ENDING)
        if path.is_file() and not weights:
            yield path
    yield from sorted((source / TEMPLATES).glob("*.jinja"))


def _followed(source: Path, path: Path) -> Path:
    folder, leads_to = source.resolve(), path.resolve()
    # snapshots/COMMIT/FILE -> ../../blobs/HASH
    cache = folder.parent.parent / "blobs"
    if not leads_to.is_relative_to(folder) and leads_to.parent != cache:
        raise SourceError(
            f"{path}: a link out of the model's folder, to {leads_to}; put a copy in its place, or "
            "remove it"
        )
    return leads_to
