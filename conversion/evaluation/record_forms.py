"""JSON-lines files of records whose form is told from the first one's keys."""

from pathlib import Path
from typing import Any

from conversion.errors import EvaluationError
from conversion.text.files import read_json_lines


def read_records(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Every record with its line number, which starts at 1.

    Raises:
        EvaluationError: missing, not UTF-8, not JSON objects, or no record at all.
    """
    records = []
    for number, record in read_json_lines(path, EvaluationError):
        if not isinstance(record, dict):
            raise EvaluationError(f"{path}: line {number} is not a JSON object; make it one")
        records.append((number, record))
    if not records:
        raise EvaluationError(f"{path}: no records in it; give a file with some")
    return records


def form_of(
    path: Path, record: dict[str, Any], forms: dict[str, tuple[str, ...]], other: str
) -> str:
    """Which of ``forms`` (name to keys) a file's first record has.

    Args:
        path: the file, for the message.
        record: its first record.
        forms: the keys of each form this caller takes.
        other: what to use for files of another form, for the message.

    Raises:
        EvaluationError: none of them.
    """
    for name, keys in forms.items():
        if all(key in record for key in keys):
            return name
    known = " or ".join("{" + ", ".join(keys) + "}" for keys in forms.values())
    has = ", ".join(record) or "no keys"
    raise EvaluationError(f"{path}: records with {has}; accepted are {known}; {other}")
