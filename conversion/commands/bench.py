"""``mha2mla bench``: a converted checkpoint beside its original in vLLM."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ByteSize, TypeAdapter, ValidationError
from rich.console import Console
from rich.table import Table

from conversion.bench.results import BenchResults, Point
from conversion.bench.server import vllm_command
from conversion.checkpoint.dtypes import DTYPES, dtype_named
from conversion.commands.options import Checkpoint, Original
from conversion.errors import BenchError, ServerError
from conversion.runtime.extras import require
from conversion.runtime.output_files import check_writable, write_json
from conversion.runtime.progress import Progress

PLOT = ".png"


def bench_command(
    checkpoint: Checkpoint,
    baseline: Original,
    kv_memory: Annotated[
        str, typer.Option(metavar="SIZE", help="Cache memory of each: 64MiB, 2GiB, or bytes.")
    ] = "64MiB",
    input_len: Annotated[
        list[str] | None,
        typer.Option(
            metavar="N[,N...]",
            help="Tokens per prompt; several make a sweep at the first concurrency. Default: 1024.",
        ),
    ] = None,
    output_len: Annotated[int, typer.Option(min=1, help="Tokens per answer.")] = 128,
    max_concurrency: Annotated[
        list[str] | None,
        typer.Option(
            metavar="N[,N...]",
            help="Requests at once; several make a sweep at the first prompt length. At 1 the "
            "time to first token is that of an unloaded server. Default: 16.",
        ),
    ] = None,
    num_prompts: Annotated[
        int | None,
        typer.Option(
            min=1, help="Requests per load and round. Default: 3 per request at once, at least 8."
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="How often each load is measured.")] = 3,
    dtype: Annotated[
        str, typer.Option(help=f"Of weights and cache as served: {', '.join(DTYPES)}.")
    ] = "bfloat16",
    args: Annotated[str, typer.Option(help="Further options for both vllm serve.")] = "",
    original_args: Annotated[str, typer.Option(help="The same for the original's.")] = "",
    converted_args: Annotated[str, typer.Option(help="The same for the converted one's.")] = "",
    one_at_a_time: Annotated[
        bool,
        typer.Option(
            "--one-at-a-time",
            help="Never two servers in memory: start each anew in every round, which takes longer.",
        ),
    ] = False,
    start_timeout: Annotated[
        float, typer.Option(min=1, help="Seconds that the start of a server may take.")
    ] = 900,
    json: Annotated[Path | None, typer.Option(help="Write the figures to this file.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Plot output throughput to this .png file.")
    ] = None,
) -> None:
    """Compare the throughput of a converted checkpoint with its original's, in vLLM.

    Both are served with the same settings and the same cache memory, and driven in turn by vLLM's
    own benchmark, with random prompts and answers of fixed length.
    """
    if json is not None:
        check_writable(json)
    if plot is not None:
        if plot.suffix != PLOT:
            raise BenchError(f"--plot {plot}: give a name that ends in {PLOT}")
        require("matplotlib", "--plot")
        check_writable(plot)
    # What is imported below comes with vLLM.
    vllm_command()
    from conversion.bench.compare import Request, bench
    from conversion.bench.loads import parse_numbers

    dtype_named(dtype)
    asked = Request(
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
    )
    err = Console(stderr=True)
    try:
        found = bench(asked, Progress(err))
    except ServerError as error:
        err.print(error.tail, style="dim", soft_wrap=True, markup=False, highlight=False)
        raise
    out = Console()
    for table in tables(found):
        out.print(table)
    if json is not None:
        write_json(json, found)
    if plot is not None:
        from conversion.bench.plots import write_plot

        write_plot(plot, found)


def size_in_bytes(text: str) -> int:
    """What ``--kv-memory`` asks for.

    Raises:
        BenchError: no size.
    """
    try:
        size = int(TypeAdapter(ByteSize).validate_python(text))
    except ValidationError:
        size = 0
    if size <= 0:
        raise BenchError(f"--kv-memory {text}: give a size such as 64MiB or 2GiB")
    return size


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
