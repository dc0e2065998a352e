"""Typed figures of one model beside the original, and a report over several.

That model is a converted checkpoint, or a rival: the original itself in a quantised cache of vLLM.
``original`` (``baseline`` for perplexity and cache) and ``converted``, which is the rival in a
rival's figures, always stand for the same tokens, documents or examples. Standard errors are those
of each figure on its own, not of their difference, which is smaller because the documents are the
same.
"""

import math

from pydantic import BaseModel, Field

from conversion.checkpoint.cache_size import CacheFigures

RIVAL = "original in vLLM's quantised caches"
"""The method of all rivals."""


class PerplexityFigures(BaseModel):
    """Perplexity over the same windows."""

    converted: float
    baseline: float
    ratio: float
    window: int
    windows: int

    @property
    def excess_loss(self) -> float:
        """Loss per token that is added, ``log(converted / baseline)``, in nats."""
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


class ChatFigures(BaseModel):
    """A model on the original's own greedy answers to a file's questions, and its own answers."""

    task: str
    questions: int
    tokens: int = Field(description="Tokens of the original's answers, over which figures are.")
    new_tokens: int = Field(description="Largest number of tokens of an answer.")
    agreement: float = Field(description="Share of these tokens that the model would say too.")
    kl: float = Field(description="KL of its predictions from the original's, nats per token.")
    original_loops: float = Field(
        description="Share of answers in which a sequence of 8 tokens occurs 4 times."
    )
    converted_loops: float = Field(description="The same of the model's own answers.")


class Entry(BaseModel):
    """One model beside the original; figures not measured are empty or ``None``."""

    name: str = Field(description="Name of the recipe or the checkpoint; unique in a report.")
    method: str
    cache: CacheFigures
    kv_cache_dtype: str | None = Field(
        default=None,
        description="Of a rival, vLLM's name of its cache; null for a converted checkpoint.",
    )
    dtype: str = Field(default="float32", description="The dtype that all models ran in.")
    perplexity: PerplexityFigures | None = None
    tasks: list[TaskFigures] = []
    positions: list[PositionFigures] = []
    retrieval: list[RetrievalFigures] = []
    chat: ChatFigures | None = None
    layer_error: list[float] | None = Field(
        default=None,
        description="Per layer, ||converted - original||^2 / ||original||^2 of the attention "
        "block's output, summed over tokens.",
    )


class Comparison(Entry):
    """One converted checkpoint beside its original, and the rivals beside the same original."""

    rivals: list[Entry] = []


class Report(BaseModel):
    """The content of a report, all of it about one source: conversions, then rivals."""

    title: str
    source: str
    entries: list[Entry] = Field(min_length=1)
    notes: list[str] = Field(default=[], description="Paragraphs under the title, plain text.")
