"""The files of a GGUF model: one, or several that are split ``-00001-of-00003.gguf``."""

import re
from pathlib import Path
from typing import Any

import gguf

from conversion.errors import SourceError, first_line
from conversion.source.gguf_header import check_header, check_offsets

PART = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})")


def gguf_parts(path: Path, name: str) -> list[Path]:
    """All files of the model that ``path`` is, or is one part of; the one with metadata first.

    Raises:
        SourceError: a part is missing.
    """
    found = PART.fullmatch(path.stem)
    if found is None:
        return [path]
    count = int(found["count"])
    parts = [
        path.with_name(f"{found['stem']}-{number:05d}-of-{count:05d}.gguf")
        for number in range(1, count + 1)
    ]
    for part in parts:
        if not part.is_file():
            raise SourceError(f"{name}: part {part.name} is missing; download it beside the others")
    return parts


def read_gguf(path: Path, name: str) -> tuple[dict[str, Any], list[Any]]:
    """The metadata of one file, and its tensors as the package gguf describes them.

    Raises:
        SourceError: truncated, or not a GGUF file.
    """
    try:
        check_header(path)
        reader = gguf.GGUFReader(path)
        check_offsets(reader.tensors, int(reader.alignment))
        return {key: field.contents() for key, field in reader.fields.items()}, reader.tensors
    except (ValueError, IndexError, KeyError, TypeError, OSError, ArithmeticError) as error:
        raise SourceError(
            f"{name}: {path.name} is truncated or not a GGUF file ({first_line(error)}); download "
            "it again"
        ) from error


def check_split(metadata: dict[str, Any], parts: list[Path], tensors: int, name: str) -> None:
    """Compare the files with what the first says of them.

    Raises:
        SourceError: there are others, or tensors are missing.
    """
    count = int(metadata.get("split.count", 0) or 1)
    if count != len(parts):
        raise SourceError(
            f"{name}: the file is one of {count} parts and its name does not say so; download all "
            "parts under their own names (...-00001-of-00002.gguf)"
        )
    promised = int(metadata.get("split.tensors.count", tensors))
    if promised != tensors:
        raise SourceError(
            f"{name}: its parts hold {tensors} of {promised} tensors; download them again"
        )
