"""Text files, and the JSON-lines records in them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from conversion.errors import TextError


def read_utf8(path: Path) -> str:
    """Read a file as UTF-8.

    Raises:
        TextError: missing, unreadable or not UTF-8.
    """
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise TextError(
            f"{path}: not UTF-8 (byte {error.start}); convert it, for example with iconv"
        ) from error
    except OSError as error:
        raise TextError(f"{path}: cannot be read ({error.strerror})") from error


def read_json_lines(path: Path) -> Iterator[tuple[int, Any]]:
    """Read every record with its line number, which starts at 1; blank lines are skipped.

    Raises:
        TextError: as for :func:`read_utf8`, or a line is not JSON.
    """
    # splitlines would also split at U+2028 and its like, which are legal inside a JSON string.
    for number, line in enumerate(read_utf8(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield number, json.loads(line)
        except ValueError as error:
            raise TextError(f"{path}: line {number} is not JSON ({error})") from error
