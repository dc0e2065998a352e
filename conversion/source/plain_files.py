"""The files beside the weights that are read whole: plain files of a size that memory holds."""

from pathlib import Path

from conversion.errors import SourceError

READ_WHOLE = {".json", ".jinja", ".model", ".tiktoken"}
READ_WHOLE_NAMES = {"vocab.txt", "merges.txt"}
LARGEST = 256 << 20
"""Bytes. The tokenizers and indexes of the largest models have a quarter of it."""


def check_plain_files(folder: Path, name: str) -> None:
    """Refuse a folder whose files would block a reader, or take all memory.

    Args:
        folder: the model's.
        name: how the user named it.

    Raises:
        SourceError: a file is a pipe, a device or a link to one, or larger than ``LARGEST``.
    """
    for path in sorted((*folder.iterdir(), *folder.glob("*chat_templates/*"))):
        if path.suffix not in READ_WHOLE and path.name not in READ_WHOLE_NAMES:
            continue
        if not path.is_file():
            if path.exists() and not path.is_dir():
                raise SourceError(f"{name}: {path.name} is not a plain file; move it away")
        elif path.stat().st_size > LARGEST:
            raise SourceError(
                f"{name}: {path.name} has {path.stat().st_size:,} bytes, more than any model's "
                f"({LARGEST:,}); download the model again"
            )
