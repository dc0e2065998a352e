"""``mha2mla bench``: a converted checkpoint beside its original in vLLM."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from conversion.commands.options import (
    Checkpoint,
    JsonFile,
    Original,
    QuantisedCaches,
    split_list,
    with_default,
)
from conversion.runtime.dtypes import DTYPES

if TYPE_CHECKING:
    from conversion.bench.results import BenchResults, Point

PLOT = ".png"


def bench_command(
    checkpoint: Checkpoint,
    baseline: Original,
    kv_memory: Annotated[
        str,
        typer.Option(metavar="SIZE", help="Cache memory of each server: 64MiB, 2GiB, or bytes."),
    ] = "64MiB",
    input_len: Annotated[
        list[str] | None,
        typer.Option(
            metavar="N[,N...]",
            help=with_default(
                "Tokens per prompt; several make a sweep at the first concurrency.", "1024"
            ),
        ),
    ] = None,
    output_len: Annotated[int, typer.Option(min=1, help="Tokens per answer.")] = 128,
    max_concurrency: Annotated[
        list[str] | None,
        typer.Option(
            metavar="N[,N...]",
            help=with_default(
                "Requests at once; several make a sweep at the first prompt length. At 1 the time "
                "to first token is that of an unloaded server.",
                "16",
            ),
        ),
    ] = None,
    num_prompts: Annotated[
        int | None,
        typer.Option(
            min=1,
            help=with_default("Requests per load and round.", "3 per request at once, at least 8"),
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Measure each load so many times.")] = 3,
    dtype: Annotated[
        str,
        typer.Option(metavar="|".join(DTYPES), help="Data type of the served weights and caches."),
    ] = "bfloat16",
    baseline_kv_cache_dtype: QuantisedCaches = None,
    args: Annotated[
        str, typer.Option(help="Further options for all servers, as vllm serve takes them.")
    ] = "",
    original_args: Annotated[
        str, typer.Option(help="Further options for the original's servers.")
    ] = "",
    converted_args: Annotated[
        str, typer.Option(help="Further options for the converted one's server.")
    ] = "",
    one_at_a_time: Annotated[
        bool | None,
        typer.Option(
            "--one-at-a-time/--together",
            help="Never hold two servers in memory: start each anew in every round, which takes "
            "longer; or hold all. By default together on CPUs, one at a time on GPUs.",
        ),
    ] = None,
    start_timeout: Annotated[
        float, typer.Option(min=1, help="Seconds that the start of a server may take.")
    ] = 900,
    json: JsonFile = None,
    plot: Annotated[
        Path | None, typer.Option(help="Plot output throughput to this .png file.")
    ] = None,
) -> None:
    """Compare the throughput of a converted checkpoint with its original's, in vLLM.

    All are served with the same settings and the same cache memory, and driven
    in turn by vLLM's own benchmark, with random prompts and answers of fixed length.
    """
    from conversion.bench.server import vllm_command
    from conversion.errors import ServerError, UsageError
    from conversion.runtime.dtypes import dtype_named
    from conversion.runtime.extras import require
    from conversion.runtime.output_files import check_writable, write_json
    from conversion.runtime.progress import Progress

    if json is not None:
        check_writable(json)
    if plot is not None:
        if plot.suffix != PLOT:
            raise UsageError(f"--plot {plot}: give a name that ends in {PLOT}")
        require("matplotlib", "--plot")
        check_writable(plot)
    vllm_command()
    # These need modules that come with vLLM, which was just found.
    from conversion.bench.compare import Request, bench
    from conversion.bench.loads import parse_numbers, size_in_bytes

    dtype_named(dtype)
    request = Request(
        checkpoint=checkpoint,
        baseline=baseline,
        kv_memory=size_in_bytes(kv_memory),
        input_len=parse_numbers("--input-len", input_len or ["1024"]),
        output_len=output_len,
        max_concurrency=parse_numbers("--max-concurrency", max_concurrency or ["16"]),
        num_prompts=num_prompts,
        rounds=rounds,
        dtype=dtype,
        one_at_a_time=one_at_a_time,
        args=args,
        original_args=original_args,
        converted_args=converted_args,
        start_timeout=start_timeout,
        kv_cache_dtypes=split_list(baseline_kv_cache_dtype),
    )
    err = Console(stderr=True)
    try:
        results = bench(request, Progress(err))
    except ServerError as error:
        err.print(error.tail, style="dim", soft_wrap=True, markup=False, highlight=False)
        raise
    out = Console()
    for table in tables(results):
        out.print(table)
    if json is not None:
        write_json(json, results)
    if plot is not None:
        from conversion.bench.plots import write_plot

        write_plot(plot, results)


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


def tables(results: "BenchResults") -> list[Table]:
    """A table per load."""
    return [_table(point) for point in results.sweep]


def _table(point: "Point") -> Table:
    title = f"{point.input_len} + {point.output_len} tokens, {point.max_concurrency} at once"
    table = Table(title, "original", *point.rivals, "converted", "ratio", "spread")
    for key, label, shown in ROWS:
        rivals = [
            f"{shown(getattr(rival.figures, key))} ({_ratio(getattr(rival.ratios, key)) or '-'})"
            for rival in point.rivals.values()
        ]
        table.add_row(
            label,
            shown(getattr(point.original, key)),
            *rivals,
            shown(getattr(point.converted, key)),
            _ratio(getattr(point.ratios, key)),
            _spread(getattr(point.spread.lowest, key), getattr(point.spread.highest, key)),
        )
    return table


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _spread(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{low:.3f} to {high:.3f}"
