"""What ``mha2mla bench`` found: typed figures, and how those of several rounds become one."""

import statistics
from collections.abc import Callable, Iterable, Sequence

from pydantic import BaseModel


class Figures(BaseModel):
    """One server under one load.

    Attributes:
        cache_tokens: what fits into the cache, as the engine counts.
        max_running: most requests seen in one batch.
        request_throughput: requests per second.
        output_throughput: generated tokens per second.
        ttft_ms: time to first token, median over requests, waiting included.
        tpot_ms: time per further token, median over requests.
        preemptions: how often a request was thrown out for want of cache.
        peak_memory_bytes: most resident memory of the server's processes while it was driven,
            pages they share counted for each.
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
    """Converted over original, by the names of :class:`Figures`; ``None`` over zero."""

    cache_tokens: float | None
    max_running: float | None
    request_throughput: float | None
    output_throughput: float | None
    ttft_ms: float | None
    tpot_ms: float | None
    preemptions: float | None
    peak_memory_bytes: float | None


class Round(BaseModel):
    """Both models under the same load, one right after the other."""

    original: Figures
    converted: Figures


class Spread(BaseModel):
    """Smallest and largest ratio of the rounds."""

    lowest: Ratios
    highest: Ratios


class Comparison(BaseModel):
    """Both models under one load, over all rounds.

    Attributes:
        original, converted: the median of the rounds, of maxima and peaks the maximum.
        ratios: of these two.
        spread: of the rounds' own ratios, in which drift of the machine cancels.
    """

    original: Figures
    converted: Figures
    ratios: Ratios
    spread: Spread
    rounds: list[Round]


class Point(Comparison):
    """One load of a sweep."""

    input_len: int
    output_len: int
    max_concurrency: int
    num_prompts: int


class Machine(BaseModel):
    """Where it was measured."""

    cpu: str
    cores: int
    memory_bytes: int
    python: str
    vllm: str
    torch: str
    environment: dict[str, str]


class Settings(BaseModel):
    """What was compared, and how: equal for both but for the options of one of them."""

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


class BenchResults(Comparison):
    """Everything ``--json`` gets.

    Attributes:
        sweep: every load; the figures above are the first's.
    """

    settings: Settings
    machine: Machine
    sweep: list[Point]


KEYS = tuple(Figures.model_fields)
MAXIMA = ("max_running", "peak_memory_bytes")


def combine(rounds: Sequence[Round]) -> Comparison:
    """The comparison that several rounds make.

    Args:
        rounds: at least one.
    """
    original = _middle([one.original for one in rounds])
    converted = _middle([one.converted for one in rounds])
    each = [ratios(one.original, one.converted) for one in rounds]
    return Comparison(
        original=original,
        converted=converted,
        ratios=ratios(original, converted),
        spread=Spread(lowest=_extreme(min, each), highest=_extreme(max, each)),
        rounds=list(rounds),
    )


def ratios(original: Figures, converted: Figures) -> Ratios:
    """Converted over original."""
    before, after = original.model_dump(), converted.model_dump()
    return Ratios(**{key: after[key] / before[key] if before[key] else None for key in KEYS})


def _middle(figures: Sequence[Figures]) -> Figures:
    columns = {key: [getattr(one, key) for one in figures] for key in KEYS}
    return Figures(
        **{
            key: max(column) if key in MAXIMA else statistics.median(column)
            for key, column in columns.items()
        }
    )


def _extreme(choose: Callable[[Iterable[float]], float], each: Sequence[Ratios]) -> Ratios:
    found = {key: [getattr(one, key) for one in each] for key in KEYS}
    return Ratios(
        **{key: None if None in column else choose(column) for key, column in found.items()}
    )
