"""``mha2mla eval``: a converted checkpoint beside its original."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Column, Table

from conversion.commands.options import (
    Checkpoint,
    JsonFile,
    Original,
    ReportFile,
    Window,
    Windows,
    with_default,
)

if TYPE_CHECKING:
    from conversion.evaluation import Entry


def eval_command(
    checkpoint: Checkpoint,
    baseline: Original,
    text: Annotated[
        Path | None, typer.Option(help="Measure perplexity on this text, .txt or .jsonl.")
    ] = None,
    window: Window = 1024,
    windows: Windows = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME_OR_FILE",
            help="Measure a task of the EleutherAI harness, by name, or one in a .jsonl file of "
            "multiple choice or last words. Repeatable.",
        ),
    ] = None,
    long_context: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Measure perplexity by position on a .txt, or retrieval on a .jsonl. Repeatable.",
        ),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(
            min=2, help=with_default("Tokens of a long context.", "all that the model takes")
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            help=with_default(
                "Use at most so many documents of a task, retrieval examples and long windows.",
                "all",
            ),
        ),
    ] = None,
    device: Annotated[
        str, typer.Option(help="Device that the models run on: cpu, cuda, ...")
    ] = "cpu",
    json: JsonFile = None,
    report: ReportFile = None,
) -> None:
    """Compare a converted checkpoint with its original."""
    from conversion.evaluation import (
        Measurement,
        Report,
        check_report_path,
        measure,
        write_report,
    )
    from conversion.runtime.device import usable_device
    from conversion.runtime.output_files import check_writable, write_json
    from conversion.runtime.progress import Progress

    if report is not None:
        check_report_path(report)
    if json is not None:
        check_writable(json)
    # The harness warns of how it works, which the user did not choose.
    for noisy in ("lm_eval", "datasets"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    request = Measurement(
        text=text,
        window=window,
        windows=windows,
        tasks=tuple(tasks or ()),
        long_context=tuple(long_context or ()),
        context=context,
        limit=limit,
    )
    progress = Progress(Console(stderr=True))
    entry = measure(checkpoint, baseline, request, progress, usable_device(device))
    # Figures that took hours are shown even if a file cannot be written.
    out = Console()
    for table in tables(entry):
        out.print(table)
    if json is not None:
        write_json(json, entry)
    if report is not None:
        title = f"{entry.name} beside its original"
        write_report(report, Report(title=title, source=baseline, entries=[entry]))


def tables(entry: "Entry") -> list[Table]:
    """The tables of the figures, for a terminal."""
    made = [_summary(entry)]
    if entry.tasks or entry.retrieval:
        made.append(_accuracy(entry))
    for figures in entry.positions:
        name = f"{figures.text}, {figures.windows} x {figures.window} tokens"
        table = Table(f"perplexity at positions of {name}", "original", "converted", "ratio")
        for bucket in figures.buckets:
            table.add_row(
                f"{bucket.start} to {bucket.end}",
                f"{bucket.original:.3f}",
                f"{bucket.converted:.3f}",
                f"{bucket.converted / bucket.original:.4f}",
            )
        made.append(table)
    return made


def _summary(entry: "Entry") -> Table:
    figures, cache = entry.perplexity, entry.cache
    table = Table("", "original", "converted", "ratio")
    if figures is not None:
        table.add_row(
            f"perplexity, {figures.windows} x {figures.window} tokens",
            f"{figures.baseline:.3f}",
            f"{figures.converted:.3f}",
            f"{figures.ratio:.4f}",
        )
    table.add_row(
        "cache bytes per token",
        f"{cache.baseline_bytes_per_token:,}",
        f"{cache.bytes_per_token:,}",
        f"{cache.fraction:.4f}",
    )
    return table


def _accuracy(entry: "Entry") -> Table:
    from conversion.evaluation.render import with_error

    table = Table(Column("task", overflow="fold"), "documents", "metric", "original", "converted")
    for task in entry.tasks:
        for metric in task.metrics:
            table.add_row(
                task.task,
                str(task.documents),
                metric.metric,
                with_error(metric.original, metric.original_stderr),
                with_error(metric.converted, metric.converted_stderr),
            )
    for retrieval in entry.retrieval:
        skipped = f" ({retrieval.skipped} too long)" if retrieval.skipped else ""
        table.add_row(
            retrieval.task,
            f"{retrieval.examples}{skipped}",
            "retrieval",
            with_error(retrieval.original, retrieval.original_stderr),
            with_error(retrieval.converted, retrieval.converted_stderr),
        )
    return table
