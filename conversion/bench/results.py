"""Typed figures of ``mha2mla bench``, and the summary of several rounds."""

import statistics
from collections.abc import Callable, Iterable, Sequence

from pydantic import BaseModel

from conversion.bench.gpus import Gpu


class Figures(BaseModel):
    """One server under one load.

    Attributes:
        cache_tokens: tokens that fit into the cache, by the engine's own count.
        max_running: largest number of requests seen in one batch.
        request_throughput: requests per second.
        output_throughput: generated tokens per second.
        ttft_ms: time to first token, median over requests, waiting included.
        tpot_ms: time per further token, median over requests.
        preemptions: requests thrown out of a full cache.
        peak_memory_bytes: largest sum of the resident memory of the server's processes while it
            was driven; shared pages count once for each.
    """

    cache_tokens: int
    max_running: int
    request_throughput: float
    output_throughput: float
    ttft_ms: float
    tpot_ms: float
    preemptions: float
    peak_memory_bytes: int


class Ratios(BaseModel):
    """A model over the original, by the names of :class:`Figures`; ``None`` where that is 0."""

    cache_tokens: float | None
    max_running: float | None
    request_throughput: float | None
    output_throughput: float | None
    ttft_ms: float | None
    tpot_ms: float | None
    preemptions: float | None
    peak_memory_bytes: float | None


class Round(BaseModel):
    """All models under the same load, one right after the other.

    Attributes:
        original, converted: figures of these two.
        rivals: figures of the original in quantised caches, by their ``--kv-cache-dtype``.
    """

    original: Figures
    converted: Figures
    rivals: dict[str, Figures] = {}


class Spread(BaseModel):
    """The smallest and the largest ratio of the rounds."""

    lowest: Ratios
    highest: Ratios


class Rival(BaseModel):
    """The original in a quantised cache under one load, over all rounds.

    Attributes:
        figures: the median of the rounds; for maxima and peaks the maximum.
        ratios: over the original in its plain cache.
        spread: range of the rounds' own ratios.
    """

    figures: Figures
    ratios: Ratios
    spread: Spread


class Comparison(BaseModel):
    """All models under one load, over all rounds.

    Attributes:
        original, converted: the median of the rounds; for maxima and peaks the maximum.
        ratios: converted over original, of these two.
        spread: range of the rounds' own ratios, in which drift of the machine cancels.
        rivals: the original in quantised caches, by their ``--kv-cache-dtype``.
    """

    original: Figures
    converted: Figures
    ratios: Ratios
    spread: Spread
    rivals: dict[str, Rival] = {}
    rounds: list[Round]


class Point(Comparison):
    """One load of a sweep."""

    input_len: int
    output_len: int
    max_concurrency: int
    num_prompts: int


class Machine(BaseModel):
    """The machine that the figures were measured on."""

    cpu: str
    cores: int
    memory_bytes: int
    gpus: list[Gpu]
    python: str
    vllm: str
    torch: str
    environment: dict[str, str]


class Settings(BaseModel):
    """The models and settings of a comparison; both models have the same but for their ``args``."""

    checkpoint: str
    baseline: str
    dtype: str
    kv_memory_bytes: int
    max_model_len: int
    input_len: list[int]
    output_len: int
    max_concurrency: list[int]
    rounds: int
    one_at_a_time: bool
    original_args: list[str]
    converted_args: list[str]
    baseline_kv_cache_dtypes: list[str] = []


class BenchResults(Comparison):
    """The content of the file that ``--json`` writes.

    Attributes:
        sweep: the figures of every load; those at the top level are the first load's.
    """

    settings: Settings
    machine: Machine
    sweep: list[Point]


KEYS = tuple(Figures.model_fields)
MAXIMA = ("max_running", "peak_memory_bytes")


def combine(rounds: Sequence[Round]) -> Comparison:
    """Summarise the rounds of one load.

    Args:
        rounds: at least one round.
    """
    before = [one.original for one in rounds]
    converted = _beside(before, [one.converted for one in rounds])
    return Comparison(
        original=_summary(before),
        converted=converted.figures,
        ratios=converted.ratios,
        spread=converted.spread,
        rivals={
            name: _beside(before, [one.rivals[name] for one in rounds]) for name in rounds[0].rivals
        },
        rounds=list(rounds),
    )


def _beside(original: Sequence[Figures], other: Sequence[Figures]) -> Rival:
    """Summarise the rounds of a model beside the original's."""
    per_round = [ratios(*pair) for pair in zip(original, other, strict=True)]
    figures = _summary(other)
    return Rival(
        figures=figures,
        ratios=ratios(_summary(original), figures),
        spread=Spread(lowest=_extreme(min, per_round), highest=_extreme(max, per_round)),
    )


def ratios(original: Figures, other: Figures) -> Ratios:
    """Divide a model's figures by the original's, one by one."""
    before, after = original.model_dump(), other.model_dump()
    return Ratios(**{key: after[key] / before[key] if before[key] else None for key in KEYS})


def _summary(figures: Sequence[Figures]) -> Figures:
    columns = {key: [getattr(one, key) for one in figures] for key in KEYS}
    return Figures(
        **{
            key: max(column) if key in MAXIMA else statistics.median(column)
            for key, column in columns.items()
        }
    )


def _extreme(choose: Callable[[Iterable[float]], float], per_round: Sequence[Ratios]) -> Ratios:
    columns = {key: [getattr(one, key) for one in per_round] for key in KEYS}
    return Ratios(
        **{key: None if None in column else choose(column) for key, column in columns.items()}
    )
