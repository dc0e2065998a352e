"""The figures of ``mha2mla eval`` for a terminal."""

from rich.table import Column, Table

from conversion.evaluation import Entry
from conversion.evaluation.render import with_error


def tables(entry: Entry) -> list[Table]:
    """The figures for a terminal."""
    made = [_summary(entry)]
    if entry.tasks or entry.retrieval:
        made.append(_accuracy(entry))
    for found in entry.positions:
        name = f"{found.text}, {found.windows} x {found.window} tokens"
        table = Table(f"perplexity at positions of {name}", "original", "converted", "ratio")
        for bucket in found.buckets:
            table.add_row(
                f"{bucket.start} to {bucket.end}",
                f"{bucket.original:.3f}",
                f"{bucket.converted:.3f}",
                f"{bucket.converted / bucket.original:.4f}",
            )
        made.append(table)
    return made


def _summary(entry: Entry) -> Table:
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


def _accuracy(entry: Entry) -> Table:
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
    for asked in entry.retrieval:
        skipped = f" ({asked.skipped} too long)" if asked.skipped else ""
        table.add_row(
            asked.task,
            f"{asked.examples}{skipped}",
            "retrieval",
            with_error(asked.original, asked.original_stderr),
            with_error(asked.converted, asked.converted_stderr),
        )
    return table
