"""Retrieval questions from local JSON-lines files.

Two forms, told apart by the first record's keys:

- ``{"prompt", "expected_number"}``: lines of a record, as in LongEval (Li et al. 2023, LongChat).
- ``{"ordered_kv_records", "key", "value"}``: key-value pairs, with the prompt of "Lost in the
  Middle" (Liu et al. 2023, arXiv:2307.03172).
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conversion.errors import TextError
from conversion.evaluation.record_forms import form_of, read_records

LINES, PAIRS = "lines", "pairs"
FORMS = {LINES: ("prompt", "expected_number"), PAIRS: ("ordered_kv_records", "key", "value")}


@dataclass(frozen=True)
class Question:
    """A prompt, and the answer expected in the model's continuation."""

    prompt: str
    answer: str


def read_questions(path: Path) -> list[Question]:
    """Read the questions of a JSON-lines file.

    Raises:
        TextError: the file is unreadable or of neither form, or a record does not fit the
            file's form.
    """
    records = read_records(path)
    form = form_of(path, records[0][1], FORMS, "tasks go to --tasks, plain text has to be .txt")
    questions = []
    for number, record in records:
        question = _line_question(record) if form == LINES else _pair_question(record)
        if question is None:
            keys = ", ".join(FORMS[form])
            raise TextError(f"{path}: line {number} has no usable {keys} like the first")
        questions.append(question)
    return questions


def _line_question(record: dict[str, Any]) -> Question | None:
    prompt, answer = (record.get(key) for key in FORMS[LINES])
    if isinstance(prompt, str) and prompt and type(answer) in (int, str) and str(answer):
        return Question(prompt, str(answer))
    return None


def _pair_question(record: dict[str, Any]) -> Question | None:
    pairs, key, value = (record.get(name) for name in FORMS[PAIRS])
    fits = (
        isinstance(pairs, list)
        and all(isinstance(pair, list) and len(pair) == 2 for pair in pairs)
        and isinstance(key, str)
        and isinstance(value, str)
        and [key, value] in pairs
    )
    if not fits:
        return None
    lines = ",\n ".join(f'"{name}": "{content}"' for name, content in pairs or [])
    return Question(
        "Extract the value corresponding to the specified key in the JSON object below.\n\n"
        f'JSON data:\n{{{lines}}}\n\nKey: "{key}"\nCorresponding value:',
        str(value),
    )
