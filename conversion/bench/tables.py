"""The comparison for a terminal."""

from collections.abc import Callable

from rich.table import Table

from conversion.bench.results import BenchResults, Point

ROWS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("cache_tokens", "tokens in the cache", lambda value: f"{value:,.0f}"),
    ("max_running", "most running together", lambda value: f"{value:,.0f}"),
    ("request_throughput", "requests per second", lambda value: f"{value:.3f}"),
    ("output_throughput", "output tokens per second", lambda value: f"{value:.1f}"),
    ("ttft_ms", "to first token, ms", lambda value: f"{value:,.0f}"),
    ("tpot_ms", "per output token, ms", lambda value: f"{value:,.1f}"),
    ("preemptions", "preemptions", lambda value: f"{value:,.0f}"),
    ("peak_memory_bytes", "peak memory, MiB", lambda value: f"{value / 2**20:,.0f}"),
)


def tables(found: BenchResults) -> list[Table]:
    """A table per load."""
    return [_table(point) for point in found.sweep]


def _table(found: Point) -> Table:
    title = f"{found.input_len} + {found.output_len} tokens, {found.max_concurrency} at once"
    table = Table(title, "original", "converted", "ratio", "spread")
    for key, label, shown in ROWS:
        table.add_row(
            label,
            shown(getattr(found.original, key)),
            shown(getattr(found.converted, key)),
            _ratio(getattr(found.ratios, key)),
            _range(getattr(found.spread.lowest, key), getattr(found.spread.highest, key)),
        )
    return table


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _range(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{low:.3f} to {high:.3f}"
