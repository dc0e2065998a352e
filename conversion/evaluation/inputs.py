"""What to measure, read and tokenised: the same inputs for both models."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from conversion.errors import EvaluationError
from conversion.evaluation.questions import read_questions
from conversion.evaluation.retrieval import Examples, fitting
from conversion.evaluation.tasks import load_tasks
from conversion.text.documents import read_text
from conversion.text.tokens import check_vocabulary
from conversion.text.windows import evaluation_windows

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measurement:
    """What to measure; at least one of ``text``, ``tasks`` and ``long_context``.

    Args:
        text: a text, or a file with it, for perplexity and the error per layer.
        window: tokens per window of ``text``.
        windows: how many windows at most; ``None`` for all.
        tasks: JSON-lines files or names of harness tasks.
        long_context: a ``.jsonl`` is retrieval, anything else a text for perplexity by position.
        context: tokens of a long context; ``None`` for as many as the model takes.
        limit: documents per task, retrieval examples or long windows at most; ``None`` for all.
    """

    text: str | Path | None = None
    window: int = 1024
    windows: int | None = None
    tasks: tuple[str, ...] = ()
    long_context: tuple[Path, ...] = ()
    context: int | None = None
    limit: int | None = None


@dataclass(frozen=True)
class Inputs:
    """What both models are given."""

    text: Tensor | None  # [windows, window]
    long_texts: list[tuple[str, Tensor]]  # [windows, context] each
    retrieval: list[Examples]
    tasks: dict[str, Any]


def read_inputs(
    what: Measurement, checkpoint: Path, config: Any
) -> tuple[PreTrainedTokenizerBase, Inputs]:
    """The checkpoint's tokenizer, and everything both models are given.

    Args:
        what: what to measure.
        checkpoint: the converted checkpoint.
        config: its config.

    Raises:
        CalibrationError, EvaluationError: nothing to measure, or something cannot be used.
    """
    if what.text is None and not what.tasks and not what.long_context:
        raise EvaluationError("nothing to measure; give --text, --tasks or --long-context")
    context = _context(config, what)
    _check_names(what.long_context)
    questions = {path: read_questions(path) for path in what.long_context if _is_jsonl(path)}
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)

    def windows(text: str | Path, window: int, limit: int | None) -> Tensor:
        if isinstance(text, Path):
            text = read_text(text, tokenizer)
        return text_windows(tokenizer, config, text, window, limit)

    return tokenizer, Inputs(
        text=None if what.text is None else windows(what.text, what.window, what.windows),
        long_texts=[
            (path.name, windows(path, context, what.limit))
            for path in what.long_context
            if not _is_jsonl(path)
        ],
        retrieval=[
            fitting(path, asked, tokenizer, context, what.limit)
            for path, asked in questions.items()
        ],
        tasks=load_tasks(what.tasks) if what.tasks else {},
    )


def text_windows(
    tokenizer: PreTrainedTokenizerBase, config: Any, text: str, window: int, limit: int | None
) -> Tensor:
    """Windows of a text that a model can be measured on, none longer than its context.

    Args:
        tokenizer: the model's.
        config: the model's.
        text: the text itself.
        window: tokens per window.
        limit: how many windows at most; ``None`` for all.

    Returns:
        token ids  # [windows, window]

    Raises:
        CalibrationError: too little text, or the tokenizer is another model's.
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
            raise EvaluationError(
                f"--long-context {name}: given {count} times; figures go by the file's name, so "
                "rename one"
            )


def _context(config: Any, what: Measurement) -> int:
    longest = int(config.max_position_embeddings)
    if what.context is not None and what.context > longest:
        raise EvaluationError(
            f"--context {what.context}: the model takes {longest} tokens; give at most that"
        )
    return what.context or longest


def _is_jsonl(path: Path) -> bool:
    return path.suffix == ".jsonl"
