"""``mha2mla eval``: a converted checkpoint beside its original."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from conversion.commands.options import (
    Checkpoint,
    JsonFile,
    Original,
    QuantisedCaches,
    ReportFile,
    Window,
    Windows,
    split_list,
    with_default,
)
from conversion.runtime.dtypes import DTYPES

if TYPE_CHECKING:
    from conversion.evaluation import ChatFigures, Comparison, Entry


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
    chat: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Measure agreement with the original's own answers to a .jsonl of questions, "
            "and how often answers loop.",
        ),
    ] = None,
    chat_tokens: Annotated[
        int, typer.Option(min=1, help="Tokens of an answer in the chat, at most.")
    ] = 160,
    limit: Annotated[
        int | None,
        typer.Option(
            min=1,
            help=with_default(
                "Use at most so many documents of a task, questions of a file and long windows.",
                "all",
            ),
        ),
    ] = None,
    baseline_kv_cache_dtype: QuantisedCaches = None,
    dtype: Annotated[
        str,
        typer.Option(
            metavar="|".join(DTYPES),
            help="Data type that all models run in; bfloat16 is faster, and blurs small losses.",
        ),
    ] = "float32",
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
        chat=chat,
        chat_tokens=chat_tokens,
        limit=limit,
        dtype=dtype,
        kv_cache_dtypes=split_list(baseline_kv_cache_dtype),
    )
    progress = Progress(Console(stderr=True))
    comparison = measure(checkpoint, baseline, request, progress, usable_device(device))
    # Figures that took hours are shown even if a file cannot be written.
    out = Console()
    for table in tables(comparison):
        out.print(table)
    if json is not None:
        write_json(json, comparison)
    if report is not None:
        title = f"{comparison.name} beside its original"
        entries = [comparison, *comparison.rivals]
        write_report(report, Report(title=title, source=baseline, entries=entries))


def tables(comparison: "Comparison") -> list[Table]:
    """The tables of the figures, for a terminal: the original, its rivals, the converted one."""
    entries = [*comparison.rivals, comparison]
    made = [_summary(entries)]
    if comparison.tasks or comparison.retrieval:
        made.append(_accuracy(entries))
    if comparison.chat is not None:
        made.append(_chat(comparison.chat, entries))
    for index in range(len(comparison.positions)):
        made.append(_positions(index, entries))
    return made


def _label(entry: "Entry") -> str:
    return entry.kv_cache_dtype or "converted"


def _summary(entries: Sequence["Entry"]) -> Table:
    cache, figures = entries[-1].cache, entries[-1].perplexity
    table = Table(Column("cache", no_wrap=True), "bytes per token", "kept")
    rows = [["original", f"{cache.baseline_bytes_per_token:,}", "1"]]
    rows += [
        [_label(entry), f"{entry.cache.bytes_per_token:,}", f"{entry.cache.fraction:.4f}"]
        for entry in entries
    ]
    if figures is not None:
        for name in ("perplexity", "ratio", "excess loss"):
            table.add_column(name)
        sizes = f"{figures.windows} x {figures.window} tokens"
        table.caption = f"Perplexity over {sizes}, in {entries[0].dtype}."
        rows[0] += [f"{figures.baseline:.3f}", "1", "0"]
        for row, entry in zip(rows[1:], entries, strict=True):
            assert entry.perplexity is not None
            own = entry.perplexity
            row += [f"{own.converted:.3f}", f"{own.ratio:.4f}", f"{own.excess_loss:.4f}"]
    for row in rows:
        table.add_row(*row)
    return table


def _chat(chat: "ChatFigures", entries: Sequence["Entry"]) -> Table:
    title = escape(f"chat, {chat.questions} questions of {chat.task}")
    table = Table(title, "top-1 agreement", "KL", "answers that loop")
    table.add_row("original", "", "", f"{chat.original_loops:.1%}")
    for entry in entries:
        own = entry.chat
        assert own is not None
        table.add_row(
            _label(entry), f"{own.agreement:.1%}", f"{own.kl:.4f}", f"{own.converted_loops:.1%}"
        )
    table.caption = f"On {chat.tokens:,} tokens of the original's answers."
    return table


def _positions(index: int, entries: Sequence["Entry"]) -> Table:
    """Perplexity by position in the long text with this index, a row per model."""
    first = entries[0].positions[index]
    places = [f"{bucket.start} to {bucket.end}" for bucket in first.buckets]
    table = Table(Column(escape(f"perplexity at positions of {first.text}"), no_wrap=True), *places)
    table.add_row("original", *(f"{bucket.original:.3f}" for bucket in first.buckets))
    for entry in entries:
        table.add_row(
            _label(entry), *(f"{bucket.converted:.3f}" for bucket in entry.positions[index].buckets)
        )
    table.caption = f"{first.windows} windows of {first.window} tokens, in {entries[0].dtype}."
    return table


def _accuracy(entries: Sequence["Entry"]) -> Table:
    """Tasks and retrieval, a row per model."""
    from conversion.evaluation.render import with_error

    names, first, rows = [], ["original"], [[_label(entry)] for entry in entries]
    for index, task in enumerate(entries[0].tasks):
        for place, metric in enumerate(task.metrics):
            names.append(f"{task.task} {metric.metric}, {task.documents} documents")
            first.append(with_error(metric.original, metric.original_stderr))
            for row, entry in zip(rows, entries, strict=True):
                own = entry.tasks[index].metrics[place]
                row.append(with_error(own.converted, own.converted_stderr))
    for index, retrieval in enumerate(entries[0].retrieval):
        skipped = f" ({retrieval.skipped} too long)" if retrieval.skipped else ""
        names.append(f"{retrieval.task}, {retrieval.examples} questions{skipped}")
        first.append(with_error(retrieval.original, retrieval.original_stderr))
        for row, entry in zip(rows, entries, strict=True):
            answers = entry.retrieval[index]
            row.append(with_error(answers.converted, answers.converted_stderr))
    table = Table(
        Column("accuracy", no_wrap=True), *(Column(escape(name), overflow="fold") for name in names)
    )
    for row in (first, *rows):
        table.add_row(*row)
    return table
