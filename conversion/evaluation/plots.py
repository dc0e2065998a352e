"""The report's plots. Imports matplotlib, so it is itself imported only to write a report."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from conversion.evaluation.results import RIVAL, Entry, MetricFigures
from conversion.runtime.figures import HEIGHT, ORIGINAL_COLOUR, WIDTH

LOG_FROM = 10.0  # ratio of the largest to the smallest value


def colours(entries: Sequence[Entry]) -> dict[str, str]:
    """Assign a colour to every entry's name, the same in every plot."""
    return {entry.name: f"C{index}" for index, entry in enumerate(entries)}


def perplexity_by_cache(entries: Sequence[Entry]) -> Figure:
    """Plot perplexity over cache bytes per token: a line per method, the original, its rivals."""
    figure, axes = _axes("cache bytes per token", "perplexity")
    points: dict[str, list[tuple[int, float]]] = {}
    values = []
    for entry in entries:
        if entry.perplexity is not None:
            point = (entry.cache.bytes_per_token, entry.perplexity.converted)
            points.setdefault(entry.method, []).append(point)
            values += [entry.perplexity.converted, entry.perplexity.baseline]
    for method, measured_points in points.items():
        style: dict[str, Any] = {"marker": "o"}
        if method == RIVAL:  # several caches, not a series
            style = {"marker": "s", "linestyle": "", "color": ORIGINAL_COLOUR}
        axes.plot(*zip(*sorted(measured_points), strict=True), label=method, **style)
    for entry in entries:
        if entry.kv_cache_dtype and entry.perplexity is not None:
            place = (entry.cache.bytes_per_token, entry.perplexity.converted)
            axes.annotate(
                entry.kv_cache_dtype, place, (5, 5), textcoords="offset points", fontsize="x-small"
            )
    measured = next(entry for entry in entries if entry.perplexity is not None)
    assert measured.perplexity is not None
    baseline = (measured.cache.baseline_bytes_per_token, measured.perplexity.baseline)
    axes.plot(*baseline, marker="*", markersize=12, linestyle="", color=ORIGINAL_COLOUR,
              label="original")  # fmt: skip
    axes.axhline(baseline[1], color=ORIGINAL_COLOUR, linewidth=0.8, linestyle=":")
    axes.set_xlim(left=0)
    _log_if_wide(axes, values)
    axes.legend()
    return figure


def accuracies(
    rows: Sequence[tuple[str, dict[str, MetricFigures]]], palette: dict[str, str]
) -> Figure:
    """Plot accuracies as bars with standard errors: the original and every entry.

    Args:
        rows: label of every metric, and its figures by entry name.
        palette: colours of :func:`colours`.
    """
    figure, axes = _axes("", "accuracy")
    names = list(dict.fromkeys(name for _, figures in rows for name in figures))
    width = 0.8 / (len(names) + 1)
    for index, name in enumerate(["", *names]):
        # The original is the same in every entry.
        figures = [
            (place, by_entry[name] if name else next(iter(by_entry.values())))
            for place, (_, by_entry) in enumerate(rows)
            if not name or name in by_entry
        ]
        axes.bar(
            [place + index * width for place, _ in figures],
            [one.converted if name else one.original for _, one in figures],
            width,
            yerr=[
                (one.converted_stderr if name else one.original_stderr) or 0.0 for _, one in figures
            ],
            capsize=2,
            color=palette[name] if name else "0.4",
            label=name or "original",
        )
    middle = 0.4 - width / 2
    labels = [label for label, _ in rows]
    axes.set_xticks([place + middle for place in range(len(rows))], labels, rotation=20, ha="right")
    axes.legend()
    return figure


def perplexity_by_position(
    buckets: Sequence[str],
    original: Sequence[float],
    converted: dict[str, list[float]],
    palette: dict[str, str],
) -> Figure:
    """Plot perplexity per position bucket: the original and a line per entry.

    Args:
        buckets: labels, such as ``0-512``.
        original: perplexity per bucket.
        converted: the same by entry name.
        palette: colours of :func:`colours`.
    """
    figure, axes = _axes("position in the window, tokens", "perplexity")
    axes.plot(buckets, original, marker="*", color=ORIGINAL_COLOUR, label="original")
    for name, values in converted.items():
        axes.plot(buckets, values, marker="o", color=palette[name], label=name)
    _log_if_wide(axes, [*original, *(value for row in converted.values() for value in row)])
    axes.legend()
    return figure


def error_by_layer(errors: dict[str, list[float]], palette: dict[str, str]) -> Figure:
    """Plot the relative squared error of every layer's attention output, a line per entry.

    Args:
        errors: one number per layer, by entry name.
        palette: colours of :func:`colours`.
    """
    figure, axes = _axes("layer", "relative squared error")
    for name, values in errors.items():
        axes.plot(range(len(values)), values, marker=".", color=palette[name], label=name)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _log_if_wide(axes, [value for row in errors.values() for value in row])
    axes.legend()
    return figure


def _axes(x: str, y: str) -> tuple[Figure, Axes]:
    # Not pyplot: it keeps global state and picks a window system.
    figure = Figure(figsize=(WIDTH, HEIGHT))
    axes = figure.add_subplot()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    return figure, axes


def _log_if_wide(axes: Axes, values: Sequence[float]) -> None:
    if min(values) > 0 and max(values) > LOG_FROM * min(values):
        axes.set_yscale("log")
