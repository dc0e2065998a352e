"""Retrieval over long contexts: greedy answers to questions about one thing in the prompt.

An answer is right if it contains the expected one as a whole word. A tokenizer's chat template,
where it has one, makes the prompt a user's message.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from conversion.errors import TextError
from conversion.evaluation.chunked import greedy
from conversion.evaluation.prompts import encode_prompt, stop_tokens
from conversion.evaluation.questions import Question
from conversion.evaluation.results import RetrievalFigures
from conversion.runtime.progress import Progress

# New tokens beyond the answer's own: a model may first repeat the question's key.
EXTRA_TOKENS = 64


@dataclass(frozen=True)
class Example:
    """A question as tokens.

    Attributes:
        ids: token ids of the prompt  # [tokens], int64
        answer: the expected answer.
        new_tokens: largest number of tokens to generate.
    """

    ids: Tensor
    answer: str
    new_tokens: int


@dataclass(frozen=True)
class Examples:
    """The questions of a file that fit a context of so many tokens."""

    name: str
    examples: list[Example]
    skipped: int
    context: int


def fitting(
    path: Path,
    questions: list[Question],
    tokenizer: PreTrainedTokenizerBase,
    context: int,
    limit: int | None,
) -> Examples:
    """Take the first ``limit`` questions, and of these the ones that fit the context.

    Args:
        path: the file, for its name.
        questions: all questions of the file.
        tokenizer: the model's; its chat template is used if it has one.
        context: limit of prompt and answer, in tokens.
        limit: largest number of questions, those that do not fit included; ``None``: all.

    Raises:
        TextError: none fits.
    """
    examples = []
    taken = questions[:limit]
    shortest = 0
    for question in taken:
        ids = encode_prompt(tokenizer, question.prompt)
        answer = tokenizer(question.answer, add_special_tokens=False)["input_ids"]
        new_tokens = len(answer) + EXTRA_TOKENS
        needed = ids.numel() + new_tokens
        if needed <= context:
            examples.append(Example(ids, question.answer, new_tokens))
        shortest = min(shortest or needed, needed)
    if not examples:
        raise TextError(
            f"{path}: every example is longer than the context of {context} tokens, the shortest "
            f"needs {shortest}; give shorter ones or, where the model allows it, raise --context"
        )
    return Examples(path.name, examples, len(taken) - len(examples), context)


def is_right(text: str, answer: str) -> bool:
    """True if a text contains the answer as a whole word, in upper or lower case."""
    word = rf"(?<![0-9A-Za-z]){re.escape(answer)}(?![0-9A-Za-z])"
    return re.search(word, text, re.IGNORECASE) is not None


def answer_all(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    examples: Examples,
    progress: Progress,
    description: str,
) -> list[bool]:
    """Let a model answer every question.

    Args:
        model: a transformers causal language model.
        tokenizer: its tokenizer.
        examples: the questions.
        progress: shows one step per question.
        description: label of the work.

    Returns:
        True for every right answer.
    """
    stop = stop_tokens(model, tokenizer)
    right = []
    with progress.task(description, len(examples.examples)) as advance:
        for example in examples.examples:
            generated = greedy(model, example.ids, stop, example.new_tokens)
            right.append(is_right(tokenizer.decode(generated), example.answer))
            advance()
    return right


def retrieval_figures(
    examples: Examples, original: list[bool], converted: list[bool]
) -> RetrievalFigures:
    """Turn both models' answers into accuracies with standard errors."""
    return RetrievalFigures(
        task=examples.name,
        examples=len(examples.examples),
        skipped=examples.skipped,
        context=examples.context,
        original=_mean(original),
        original_stderr=_stderr(original),
        converted=_mean(converted),
        converted_stderr=_stderr(converted),
    )


def _mean(right: list[bool]) -> float:
    return sum(right) / len(right)


def _stderr(right: list[bool]) -> float | None:
    # Standard error of the mean from the unbiased variance, as the harness computes it.
    mean, count = _mean(right), len(right)
    return float((mean * (1 - mean) / (count - 1)) ** 0.5) if count > 1 else None
