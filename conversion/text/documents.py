"""Documents: the text of files, and the one that every CPython carries."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from conversion.errors import TextError
from conversion.text.files import read_json_lines, read_utf8

BUILTIN_NAME = "pydoc_data.topics"
# Every fifth topic of the built-in text is left to measure on.
HELD_OUT_EVERY = 5
# Fields that a record's text is taken from: the first of TEXT_FIELDS that is there, else its
# messages, else all prompt and completion fields together.
TEXT_FIELDS = ("text", "content")
PROMPT_FIELDS = ("prompt", "instruction", "question", "input")
COMPLETION_FIELDS = ("completion", "response", "answer", "output")


def builtin_text(part: Literal["calibration", "held-out"]) -> str:
    """Python's language reference, as ``help()`` shows it: 0.6 MB of technical English.

    Args:
        part: the topics to calibrate on, or the others.
    """
    from pydoc_data.topics import topics

    chosen = [
        body
        for index, (_, body) in enumerate(sorted(topics.items()))
        if (index % HELD_OUT_EVERY == 0) == (part == "held-out")
    ]
    return "\n\n".join(chosen)


def read_texts(
    files: Sequence[Path], tokenizer: PreTrainedTokenizerBase
) -> tuple[list[str], list[str]]:
    """Read files, or the built-in text if there are none.

    Returns:
        names; texts

    Raises:
        TextError: as for :func:`read_text`.
    """
    if not files:
        return [BUILTIN_NAME], [builtin_text("calibration")]
    return [text_name(path) for path in files], [read_text(path, tokenizer) for path in files]


def text_name(path: Path) -> str:
    """A file's name as UTF-8 for provenance and model card; other bytes are replaced."""
    return path.name.encode("utf-8", "replace").decode()


def read_text(path: Path, tokenizer: PreTrainedTokenizerBase) -> str:
    """Read the text of a ``.txt`` or ``.jsonl`` file; records are joined by blank lines.

    Args:
        path: the file.
        tokenizer: its chat template gives the text of a record with messages.

    Raises:
        TextError: missing, not UTF-8, empty, or records without a known field.
    """
    text = "\n\n".join(_records(path, tokenizer)) if path.suffix == ".jsonl" else read_utf8(path)
    # A cut \\u escape of JSON leaves half a character, which tokenizers refuse.
    text = text.encode("utf-8", "replace").decode()
    if not text.strip():
        raise TextError(f"{path}: no text in it; give a file with some")
    return text


def _records(path: Path, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    records = []
    for number, record in read_json_lines(path):
        try:
            body = _record_text(record, tokenizer)
        except (TemplateError, TypeError, KeyError, AttributeError, ValueError) as error:
            raise TextError(
                f"{path}: line {number}: messages do not fit the model's chat template ({error})"
            ) from error
        if body is None:
            raise TextError(
                f"{path}: line {number} has none of the fields text, messages, or "
                "prompt and completion"
            )
        records.append(body)
    return records


def _record_text(record: Any, tokenizer: PreTrainedTokenizerBase) -> str | None:
    if not isinstance(record, dict):
        return None
    for field in TEXT_FIELDS:
        if isinstance(record.get(field), str):
            return str(record[field])
    if isinstance(record.get("messages"), list):
        if getattr(tokenizer, "chat_template", None):
            return str(tokenizer.apply_chat_template(record["messages"], tokenize=False))
        return "\n".join(str(message.get("content", "")) for message in record["messages"])
    parts = [
        record[field]
        for field in (*PROMPT_FIELDS, *COMPLETION_FIELDS)
        if isinstance(record.get(field), str)
    ]
    return "\n".join(parts) if parts else None
