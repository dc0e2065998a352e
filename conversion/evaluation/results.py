"""What is measured: typed figures of one converted checkpoint, and a report over several.

``original`` (``baseline`` for perplexity and cache) and ``converted`` always stand for the same
tokens, documents or examples. Standard errors are those of each figure on its own, not of their
difference, which is smaller because the documents are the same.
"""

import math

from pydantic import BaseModel, Field

from conversion.checkpoint.cache_size import CacheFigures


class PerplexityFigures(BaseModel):
    """Perplexity over the same windows."""

    converted: float
    baseline: float
    ratio: float
    window: int
    windows: int

    @property
    def excess_loss(self) -> float:
        """What conversion adds to the mean loss per token, ``log(converted / baseline)``, nats."""
        return math.log(self.ratio)


class MetricFigures(BaseModel):
    """One metric of a task. A standard error is ``None`` where the harness gives none."""

    metric: str
    higher_is_better: bool
    original: float
    original_stderr: float | None
    converted: float
    converted_stderr: float | None


class TaskFigures(BaseModel):
    """A task of the EleutherAI harness."""

    task: str
    documents: int
    metrics: list[MetricFigures]


class PositionBucket(BaseModel):
    """Perplexity of the tokens at positions ``start`` to ``end - 1`` of every window."""

    start: int
    end: int
    tokens: int
    original: float
    converted: float


class PositionFigures(BaseModel):
    """Perplexity by position in windows of ``window`` tokens of a text."""

    text: str
    window: int
    windows: int
    buckets: list[PositionBucket]


class RetrievalFigures(BaseModel):
    """Share of questions answered right, by greedy generation, about something in the context."""

    task: str
    examples: int
    skipped: int = Field(description="Examples longer than the context.")
    context: int = Field(description="Tokens of prompt and answer at most.")
    original: float
    original_stderr: float | None
    converted: float
    converted_stderr: float | None


class Evaluation(BaseModel):
    """Perplexity on a text, and the cache."""

    perplexity: PerplexityFigures
    cache: CacheFigures


class Entry(BaseModel):
    """One converted checkpoint beside its original. What was not measured is left out."""

    name: str = Field(description="Of the recipe or the checkpoint; unique in a report.")
    method: str
    cache: CacheFigures
    perplexity: PerplexityFigures | None = None
    tasks: list[TaskFigures] = []
    positions: list[PositionFigures] = []
    retrieval: list[RetrievalFigures] = []
    layer_error: list[float] | None = Field(
        default=None,
        description="Per layer, ||converted - original||^2 / ||original||^2 of the attention "
        "block's output, summed over tokens.",
    )


class Report(BaseModel):
    """What :func:`conversion.evaluation.report.write_report` draws; one source throughout."""

    title: str
    source: str
    entries: list[Entry] = Field(min_length=1)
    notes: list[str] = Field(default=[], description="Paragraphs under the title, plain text.")
