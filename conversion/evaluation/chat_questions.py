"""Questions for a chat, from JSON-lines files: the first turns of MT-bench, or prompts.

Two forms, told apart by the first record's keys: ``{"turns"}``, of which the first counts, as in
MT-bench (Zheng et al. 2023, arXiv:2306.05685), and ``{"prompt"}``.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from conversion.errors import TextError
from conversion.evaluation.prompts import encode_prompt
from conversion.evaluation.record_forms import form_of, read_records

TURNS, PROMPT = "turns", "prompt"
FORMS: dict[str, tuple[str, ...]] = {TURNS: (TURNS,), PROMPT: (PROMPT,)}


@dataclass(frozen=True)
class Chat:
    """The questions of a file, and how long answers may be.

    Attributes:
        name: name of the file.
        prompts: token ids of every question  # [tokens] each, int64
        new_tokens: largest number of tokens of an answer.
    """

    name: str
    prompts: list[Tensor]
    new_tokens: int


def read_chat(
    path: Path,
    tokenizer: PreTrainedTokenizerBase,
    context: int,
    new_tokens: int,
    limit: int | None,
) -> Chat:
    """Read the questions of a file.

    Args:
        path: a JSON-lines file of one of the forms above.
        tokenizer: the model's; its chat template is used if it has one.
        context: limit of question and answer, in tokens.
        new_tokens: largest number of tokens of an answer.
        limit: largest number of questions; ``None``: all.

    Raises:
        TextError: the file is unreadable or of neither form, a record does not fit the file's
            form, or a question leaves no room for an answer.
    """
    records = read_records(path)
    form = form_of(path, records[0][1], FORMS, "retrieval goes to --long-context")
    prompts = []
    for number, record in records[:limit]:
        question = _question(record, form)
        if question is None:
            raise TextError(f"{path}: line {number} has no usable {form} like the first")
        ids = encode_prompt(tokenizer, question)
        if ids.numel() + new_tokens > context:
            raise TextError(
                f"{path}: the question in line {number} has {ids.numel()} tokens, and with an "
                f"answer of {new_tokens} it is longer than the context of {context}; lower "
                "--chat-tokens, or leave it out"
            )
        prompts.append(ids)
    return Chat(path.name, prompts, new_tokens)


def _question(record: dict[str, Any], form: str) -> str | None:
    question = record.get(form)
    if form == TURNS:
        question = question[0] if isinstance(question, list) and question else None
    return question if isinstance(question, str) and question.strip() else None
