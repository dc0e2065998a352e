"""JSON-lines files whose records have one of several forms, told by the first record's keys."""

from pathlib import Path
from typing import Any

from conversion.errors import TextError
from conversion.text.files import read_json_lines


def read_records(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Read every record with its line number, which starts at 1.

    Raises:
        TextError: the file is missing, not UTF-8, empty, or has a line that is no JSON
            object.
    """
    records = []
    for number, record in read_json_lines(path):
        if not isinstance(record, dict):
            raise TextError(f"{path}: line {number} is not a JSON object; make it one")
        records.append((number, record))
    if not records:
        raise TextError(f"{path}: no records in it; give a file with some")
    return records


def form_of(
    path: Path, record: dict[str, Any], forms: dict[str, tuple[str, ...]], other: str
) -> str:
    """Find the form of a file by its first record's keys.

    Args:
        path: the file, for the message.
        record: its first record.
        forms: the accepted forms, name to keys.
        other: the options to use for files of other forms, for the message.

    Returns:
        the name of the form.

    Raises:
        TextError: the record has none of these forms.
    """
    for name, keys in forms.items():
        if all(key in record for key in keys):
            return name
    known = " or ".join("{" + ", ".join(keys) + "}" for keys in forms.values())
    has = ", ".join(record) or "no keys"
    raise TextError(f"{path}: records with {has}; accepted are {known}; {other}")
