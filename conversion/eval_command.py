"""``mha2mla eval``: a converted checkpoint beside its original."""

import logging
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from conversion.command_options import Checkpoint, Original, ReportFile, Window, Windows
from conversion.eval_tables import tables
from conversion.evaluation import (
    Measurement,
    Report,
    check_report_path,
    measure,
    write_report,
)
from conversion.output_files import check_writable, write_json
from conversion.progress import Progress


def eval_command(
    checkpoint: Checkpoint,
    baseline: Original,
    text: Annotated[Path | None, typer.Option(help="Text for perplexity, .txt or .jsonl.")] = None,
    window: Window = 1024,
    windows: Windows = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME_OR_FILE",
            help="Task of the EleutherAI harness by name, or a .jsonl file of multiple choice "
            "or last words. Repeatable.",
        ),
    ] = None,
    long_context: Annotated[
        list[Path] | None,
        typer.Option(
            help="A .txt for perplexity by position, or a .jsonl of retrieval. Repeatable."
        ),
    ] = None,
    context: Annotated[
        int | None,
        typer.Option(min=2, help="Tokens of a long context. Default: what the model takes."),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(min=1, help="Documents per task, retrieval examples, long windows at most."),
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Write the figures to this file.")] = None,
    report: ReportFile = None,
) -> None:
    """Compare a converted checkpoint with its original."""
    if report is not None:
        check_report_path(report)
    if json is not None:
        check_writable(json)
    # The harness warns about its own ways of doing what it was asked for.
    for noisy in ("lm_eval", "datasets"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    what = Measurement(
        text=text,
        window=window,
        windows=windows,
        tasks=tuple(tasks or ()),
        long_context=tuple(long_context or ()),
        context=context,
        limit=limit,
    )
    entry = measure(checkpoint, baseline, what, Progress(Console(stderr=True)))
    # What took hours is shown, whatever comes of the files.
    out = Console()
    for table in tables(entry):
        out.print(table)
    if json is not None:
        write_json(json, entry)
    if report is not None:
        title = f"{entry.name} beside its original"
        write_report(report, Report(title=title, source=baseline, entries=[entry]))
