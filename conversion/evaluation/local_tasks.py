"""Tasks for the EleutherAI harness from local JSON-lines files, without a hub.

Two forms, told apart by the first record's keys:

- ``{"query", "choices", "gold"}``: multiple choice. Every choice is scored as the continuation of
  ``query`` after one space; ``acc`` takes the most likely one, ``acc_norm`` the most likely per
  character. A query that starts with ``Question:`` is closed by a line ``Answer:``, as in the
  harness's own ``arc_easy`` and ``piqa``.
- ``{"context", "continuation"}``: the continuation after one space, as in ``lambada_openai``:
  ``acc`` is 1 if greedy decoding gives it; ``perplexity`` is per document, not per token.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conversion.errors import TextError
from conversion.evaluation.record_forms import form_of, read_records

CHOICE, CONTINUATION = "multiple choice", "continuation"
FORMS = {CHOICE: ("query", "choices", "gold"), CONTINUATION: ("context", "continuation")}
QUESTION, ANSWER = "Question:", "Answer:"

MEAN = {"aggregation": "mean", "higher_is_better": True}
CONFIGS: dict[str, dict[str, Any]] = {
    CHOICE: {
        "output_type": "multiple_choice",
        "doc_to_text": "text",
        "doc_to_choice": "choices",
        "doc_to_target": "gold",
        "target_delimiter": " ",
        "metric_list": [{"metric": "acc"} | MEAN, {"metric": "acc_norm"} | MEAN],
    },
    CONTINUATION: {
        "output_type": "loglikelihood",
        "doc_to_text": "text",
        "doc_to_target": "target",
        "metric_list": [
            {"metric": "acc"} | MEAN,
            {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
        ],
    },
}


@dataclass(frozen=True)
class LocalTask:
    """A file in the harness's terms: a task config, and documents with that config's fields."""

    name: str
    config: dict[str, Any]
    documents: list[dict[str, Any]]


def read_local_task(path: Path) -> LocalTask:
    """Read a JSON-lines file as a task named after it.

    Raises:
        TextError: the file is unreadable or of neither form, or a record does not fit the
            file's form.
    """
    records = read_records(path)
    form = form_of(path, records[0][1], FORMS, "texts go to --text, retrieval to --long-context")
    parse = _choice if form == CHOICE else _continuation
    documents = []
    for number, record in records:
        document = parse(record)
        if document is None:
            raise TextError(f"{path}: line {number} is not {form} like the first: {EXPECTED[form]}")
        documents.append(document)
    config = {"task": path.name, "test_split": "test", "num_fewshot": 0} | CONFIGS[form]
    return LocalTask(path.name, config, documents)


EXPECTED = {
    CHOICE: "query has to be text, choices two or more texts, gold the index of one",
    CONTINUATION: "context and continuation have to be texts",
}


def _choice(record: dict[str, Any]) -> dict[str, Any] | None:
    query, choices, gold = (record.get(key) for key in FORMS[CHOICE])
    fits = (
        _is_text(query)
        and isinstance(choices, list)
        and len(choices) > 1
        and all(_is_text(choice) for choice in choices)
        and type(gold) is int
        and 0 <= gold < len(choices)
    )
    return {"text": prompt(str(query)), "choices": choices, "gold": gold} if fits else None


def _continuation(record: dict[str, Any]) -> dict[str, Any] | None:
    context, continuation = (record.get(key) for key in FORMS[CONTINUATION])
    if not (_is_text(context) and _is_text(continuation)):
        return None
    return {"text": context, "target": " " + str(continuation)}


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def prompt(query: str) -> str:
    """The text before the choices: the query, closed with ``Answer:`` if it is a question."""
    if query.startswith(QUESTION) and not query.rstrip().endswith(ANSWER):
        return f"{query.rstrip()}\n{ANSWER}"
    return query
