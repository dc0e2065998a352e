"""The inputs of a measurement, read and tokenised once for all models."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from conversion.errors import UsageError
from conversion.evaluation.chat_questions import Chat, read_chat
from conversion.evaluation.quantised_cache import chosen_kinds
from conversion.evaluation.questions import read_questions
from conversion.evaluation.retrieval import Examples, fitting
from conversion.evaluation.tasks import load_tasks
from conversion.source import SourceCheckpoint
from conversion.text.documents import read_text
from conversion.text.tokens import check_vocabulary
from conversion.text.windows import evaluation_windows

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measurement:
    """A request to measure at least one of ``text``, ``tasks``, ``long_context`` and ``chat``.

    Args:
        text: a text, or a file with it, for perplexity and the error per layer.
        window: tokens per window of ``text``.
        windows: largest number of windows of ``text``; ``None``: all.
        tasks: JSON-lines files or names of harness tasks.
        long_context: ``.jsonl`` files hold retrieval questions; any other file is a text for
            perplexity by position.
        context: tokens of a long context; ``None``: as many as the model takes.
        chat: a JSON-lines file of questions.
        chat_tokens: largest number of tokens of an answer to these.
        limit: largest number of documents per task, questions per file and long windows per text;
            ``None``: all.
        dtype: dtype that the models run in, a name of ``conversion.runtime.dtypes``.
        kv_cache_dtypes: quantised caches of vLLM that the original is measured in too.
    """

    text: str | Path | None = None
    window: int = 1024
    windows: int | None = None
    tasks: tuple[str, ...] = ()
    long_context: tuple[Path, ...] = ()
    context: int | None = None
    chat: Path | None = None
    chat_tokens: int = 160
    limit: int | None = None
    dtype: str = "float32"
    kv_cache_dtypes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Inputs:
    """The inputs that all models are given.

    Attributes:
        tokenizer: the tokenizer of all models.
        text: token ids for perplexity  # [windows, window]
        long_texts: name and token ids of every long text  # [windows, context] each
        retrieval: the questions of every file.
        chat: the chat's questions; ``None`` without a chat.
        tasks: the harness's tasks by name.
        limit: largest number of documents per task; ``None``: all.
    """

    tokenizer: PreTrainedTokenizerBase
    text: Tensor | None
    long_texts: list[tuple[str, Tensor]]
    retrieval: list[Examples]
    chat: Chat | None
    tasks: dict[str, Any]
    limit: int | None


def read_inputs(measurement: Measurement, source: SourceCheckpoint) -> Inputs:
    """Read everything that all models are given.

    Args:
        measurement: the figures to measure, and on what.
        source: the original, for its tokenizer and its context length.

    Raises:
        UsageError: nothing to measure, or an option does not fit the model.
        TextError: a text cannot be used.
    """
    request = measurement
    if not (request.text or request.tasks or request.long_context or request.chat):
        raise UsageError("nothing to measure; give --text, --tasks, --long-context or --chat")
    config = source.config
    chosen_kinds(measurement.kv_cache_dtypes, config)
    longest = int(config.max_position_embeddings)
    context = _context(longest, measurement)
    _check_names(measurement.long_context)
    questions = {path: read_questions(path) for path in measurement.long_context if _is_jsonl(path)}
    tokenizer = source.tokenizer()

    def windows(text: str | Path, window: int, limit: int | None) -> Tensor:
        if isinstance(text, Path):
            text = read_text(text, tokenizer)
        return text_windows(tokenizer, config, text, window, limit)

    return Inputs(
        tokenizer=tokenizer,
        text=None
        if measurement.text is None
        else windows(measurement.text, measurement.window, measurement.windows),
        long_texts=[
            (path.name, windows(path, context, measurement.limit))
            for path in measurement.long_context
            if not _is_jsonl(path)
        ],
        retrieval=[
            fitting(path, file_questions, tokenizer, context, measurement.limit)
            for path, file_questions in questions.items()
        ],
        chat=None
        if measurement.chat is None
        else read_chat(
            measurement.chat, tokenizer, longest, measurement.chat_tokens, measurement.limit
        ),
        tasks=load_tasks(measurement.tasks) if measurement.tasks else {},
        limit=measurement.limit,
    )


def text_windows(
    tokenizer: PreTrainedTokenizerBase, config: Any, text: str, window: int, limit: int | None
) -> Tensor:
    """Cut a text into windows for a model, none longer than its context.

    Args:
        tokenizer: the model's.
        config: the model's.
        text: the text itself.
        window: tokens per window.
        limit: largest number of windows; ``None``: all.

    Returns:
        token ids  # [windows, window]

    Raises:
        TextError: too little text, or the tokenizer is another model's.
    """
    longest = int(config.max_position_embeddings)
    if window > longest:
        logger.info("windows of %d tokens, not %d: the model takes no more", longest, window)
    ids = evaluation_windows(tokenizer, text, min(window, longest), limit)
    check_vocabulary("evaluation text", config.vocab_size, ids)
    return ids


def _check_names(paths: Sequence[Path]) -> None:
    for name, count in Counter(path.name for path in paths).items():
        if count > 1:
            raise UsageError(
                f"--long-context {name}: given {count} times; figures go by the file's name, so "
                "rename one"
            )


def _context(longest: int, measurement: Measurement) -> int:
    if measurement.context is not None and measurement.context > longest:
        raise UsageError(
            f"--context {measurement.context}: the model takes {longest} tokens; give at most that"
        )
    return measurement.context or longest


def _is_jsonl(path: Path) -> bool:
    return path.suffix == ".jsonl"
