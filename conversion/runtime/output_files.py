"""Output files and folders: checked before the work, written after it."""

import os
from pathlib import Path

from pydantic import BaseModel

from conversion.errors import OutputError


def check_writable(path: Path) -> None:
    """Make sure that a file can be written at ``path``, before the long work that fills it.

    Raises:
        OutputError: its folder is missing, it is a folder itself, or it may not be written.
    """
    if not path.parent.is_dir():
        raise OutputError(f"{path}: no folder {path.parent}; create it first")
    if path.is_dir():
        raise OutputError(f"{path}: is a folder; name a file")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise OutputError(f"{path}: may not be written; choose another place")


def make_folder(path: Path) -> None:
    """Make a folder, and those above it.

    Raises:
        OutputError: it cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror})") from error


def write_json(path: Path, figures: BaseModel) -> None:
    """Write figures for other programs.

    Raises:
        OutputError: the file cannot be written.
    """
    try:
        path.write_text(figures.model_dump_json(indent=2) + "\n", "utf-8")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror})") from error
