"""The report's sections: tables and plots from figures. Imports matplotlib, through ``plots``."""

from collections.abc import Sequence

from conversion.evaluation.plots import (
    accuracies,
    colours,
    error_by_layer,
    perplexity_by_cache,
    perplexity_by_position,
)
from conversion.evaluation.render import Plot, Section, Table, with_error
from conversion.evaluation.results import Entry, MetricFigures, PositionFigures
from conversion.runtime.figures import image

MISSING = "-"
LAYER_TEXT = (
    "Squared distance of each attention block's output from the original's, relative to the "
    "original's square. Each model runs on its own residual stream, so a layer's error includes "
    "the errors of the layers below it."
)


def sections(entries: Sequence[Entry], kind: str) -> list[Section]:
    """Make every section that there are figures for.

    Args:
        entries: the report's entries.
        kind: image format of the plots, ``svg`` or ``png``.
    """
    return [
        _summary(entries, kind),
        *_accuracy(entries, kind),
        *_chat(entries),
        *_positions(entries, kind),
        *_layers(entries, kind),
    ]


def _summary(entries: Sequence[Entry], kind: str) -> Section:
    rows = []
    for entry in entries:
        cache, perplexity = entry.cache, entry.perplexity
        rows.append(
            [entry.name, entry.method, f"{cache.bytes_per_token:,}", f"{cache.fraction:.2%}"]
            + (
                [
                    f"{perplexity.baseline:.3f}",
                    f"{perplexity.converted:.3f}",
                    f"{perplexity.ratio:.4f}",
                    f"{perplexity.excess_loss:.4f}",
                ]
                if perplexity
                else [MISSING] * 4
            )
        )
    header = ["", "method", "cache bytes per token", "cache kept", "perplexity, original",
              "perplexity, converted", "ratio", "excess loss"]  # fmt: skip
    text = f"The original caches {entries[0].cache.baseline_bytes_per_token:,} bytes per token."
    measured = [entry for entry in entries if entry.perplexity]
    if not measured:
        return Section("Cache", text, [Table(header[:4], [row[:4] for row in rows])])
    sizes = dict.fromkeys(
        f"{entry.perplexity.windows} windows of {entry.perplexity.window} tokens"
        for entry in measured
        if entry.perplexity
    )
    text += f" Perplexity over {', '.join(sizes)}, in {entries[0].dtype}."
    text += " Excess loss is the logarithm of the ratio, nats per token."
    plot = Plot(
        "perplexity",
        "Perplexity against cache bytes per token",
        image(perplexity_by_cache(measured), kind),
    )
    return Section("Perplexity and cache", text, [Table(header, rows)], [plot])


def _accuracy(entries: Sequence[Entry], kind: str) -> list[Section]:
    """Make the section of tasks and retrieval: one row per metric, one column per entry."""
    # Task, metric and number of documents -> entry's name -> figures.
    by_metric: dict[tuple[str, str, int], dict[str, MetricFigures]] = {}
    skipped = []
    for entry in entries:
        for task in entry.tasks:
            for metric in task.metrics:
                key = (task.task, metric.metric, task.documents)
                by_metric.setdefault(key, {})[entry.name] = metric
        for retrieval in entry.retrieval:
            accuracy = MetricFigures(
                metric="retrieval",
                higher_is_better=True,
                **retrieval.model_dump(
                    include={"original", "original_stderr", "converted", "converted_stderr"}
                ),
            )
            key = (retrieval.task, "retrieval", retrieval.examples)
            by_metric.setdefault(key, {})[entry.name] = accuracy
            if retrieval.skipped:
                skipped.append(
                    f"{retrieval.skipped} examples of {retrieval.task} are longer than the context "
                    f"of {retrieval.context} tokens and left out."
                )
    if not by_metric:
        return []
    names = [entry.name for entry in entries]
    rows = []
    for (task_name, metric_name, documents), figures in by_metric.items():
        first = next(iter(figures.values()))
        cells = [
            with_error(figures[name].converted, figures[name].converted_stderr)
            if name in figures
            else MISSING
            for name in names
        ]
        # The original's figures are the same in every entry.
        original = with_error(first.original, first.original_stderr)
        rows.append([task_name, metric_name, f"{documents:,}", original, *cells])
    bars = [
        (f"{task_name} {metric_name}", figures)
        for (task_name, metric_name, _), figures in by_metric.items()
        if all(_is_accuracy(metric) for metric in figures.values())
    ]
    plots = []
    if bars:
        chart = image(accuracies(bars, colours(entries)), kind)
        plots.append(Plot("accuracy", "Accuracy with standard errors", chart))
    running = f"Models run in {entries[0].dtype}. "
    text = "Each figure has its own standard error. " + running + " ".join(dict.fromkeys(skipped))
    table = Table(["", "metric", "documents", "original", *names], rows)
    return [Section("Tasks and retrieval", text.strip(), [table], plots)]


def _is_accuracy(metric: MetricFigures) -> bool:
    return metric.higher_is_better and all(
        0 <= value <= 1 for value in (metric.original, metric.converted)
    )


def _chat(entries: Sequence[Entry]) -> list[Section]:
    measured = [(entry.name, entry.chat) for entry in entries if entry.chat is not None]
    if not measured:
        return []
    first = measured[0][1]
    rows = [["original", "", "", f"{first.original_loops:.1%}"]]
    rows += [
        [name, f"{chat.agreement:.1%}", f"{chat.kl:.4f}", f"{chat.converted_loops:.1%}"]
        for name, chat in measured
    ]
    text = (
        f"On the original's own greedy answers to {first.questions} questions of {first.task}, "
        f"{first.tokens:,} tokens: how many of them a model would say too, and the KL of its "
        "predictions from the original's. An answer loops if 8 tokens occur 4 times in it."
    )
    table = Table(["", "top-1 agreement", "KL, nats per token", "answers that loop"], rows)
    return [Section("Chat", text, [table])]


def _positions(entries: Sequence[Entry], kind: str) -> list[Section]:
    # One section per text and window length: only those share their buckets.
    texts: dict[tuple[str, int, int], dict[str, PositionFigures]] = {}
    for entry in entries:
        for figures in entry.positions:
            key = (figures.text, figures.window, figures.windows)
            texts.setdefault(key, {})[entry.name] = figures
    palette = colours(entries)
    result = []
    for index, ((text, window, windows), by_name) in enumerate(texts.items()):
        buckets = next(iter(by_name.values())).buckets
        labels = [f"{bucket.start}-{bucket.end}" for bucket in buckets]
        original = [bucket.original for bucket in buckets]
        converted = {
            name: [bucket.converted for bucket in figures.buckets]
            for name, figures in by_name.items()
        }
        rows = [
            [label, f"{bucket.tokens:,}", f"{bucket.original:.3f}"]
            + [f"{values[place]:.3f}" for values in converted.values()]
            for place, (label, bucket) in enumerate(zip(labels, buckets, strict=True))
        ]
        plot = Plot(
            "positions" if index == 0 else f"positions-{index + 1}",
            f"Perplexity by position, {text}",
            image(perplexity_by_position(labels, original, converted, palette), kind),
        )
        result.append(
            Section(
                f"Perplexity by position: {text}",
                f"{windows} windows of {window} tokens, in {entries[0].dtype}.",
                [Table(["position", "tokens", "original", *converted], rows)],
                [plot],
            )
        )
    return result


def _layers(entries: Sequence[Entry], kind: str) -> list[Section]:
    errors = {entry.name: entry.layer_error for entry in entries if entry.layer_error}
    if not errors:
        return []
    rows = [
        [name, f"{sum(values) / len(values):.3g}", f"{max(values):.3g}",
         str(values.index(max(values)))]
        for name, values in errors.items()
    ]  # fmt: skip
    plot = Plot("layers", "Error per layer", image(error_by_layer(errors, colours(entries)), kind))
    table = Table(["", "mean", "largest", "in layer"], rows)
    return [Section("Error per layer", LAYER_TEXT, [table], [plot])]
