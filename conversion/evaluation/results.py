"""Typed figures of one converted checkpoint beside its original, and a report over several.

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
        """Loss per token that the conversion adds, ``log(converted / baseline)``, in nats."""
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
    """Share of right answers, by greedy generation, to questions about something in the context."""

    task: str
    examples: int
    skipped: int = Field(description="Examples longer than the context.")
    context: int = Field(description="Limit of prompt and answer, in tokens.")
    original: float
    original_stderr: float | None
    converted: float
    converted_stderr: float | None


class Entry(BaseModel):
    """One converted checkpoint beside its original; figures not measured are empty or ``None``."""

    name: str = Field(description="Name of the recipe or the checkpoint; unique in a report.")
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
    """The content of a report, all of it about conversions of one source."""

    title: str
    source: str
    entries: list[Entry] = Field(min_length=1)
    notes: list[str] = Field(default=[], description="Paragraphs under the title, plain text.")
