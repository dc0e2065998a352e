"""The plot of a comparison. Imports matplotlib, so it is itself imported only to write one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from conversion.bench.results import BenchResults, Point, Rival, Round
from conversion.errors import OutputError
from conversion.runtime.figures import HEIGHT, ORIGINAL_COLOUR, WIDTH, image

KIND = "png"


def write_plot(path: Path, results: BenchResults) -> None:
    """Plot output throughput over context length, over concurrency, or both, as they were swept.

    Raises:
        OutputError: the file cannot be written.
    """
    try:
        path.write_bytes(image(throughput(results), KIND))
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror})") from error


def throughput(results: BenchResults) -> Figure:
    """Draw a plot per sweep: median of the rounds, with bars from the lowest to the highest."""
    first = results.sweep[0]
    by_context = [one for one in results.sweep if one.max_concurrency == first.max_concurrency]
    by_concurrency = [one for one in results.sweep if one.input_len == first.input_len]
    context = by_context, "input_len", "tokens per prompt", f"{first.max_concurrency} at once"
    concurrency = (
        by_concurrency, "max_concurrency", "requests at once", f"prompts of {first.input_len}"
    )  # fmt: skip
    panels = [panel for panel in (context, concurrency) if len(panel[0]) > 1] or [context]
    figure = Figure(figsize=(WIDTH * len(panels), HEIGHT))
    for axes, (points, key, label, fixed) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
    ):
        _panel(axes, sorted(points, key=lambda one: int(getattr(one, key))), key)
        axes.set_xlabel(f"{label} ({fixed}, answers of {first.output_len} tokens)")
    return figure


def _rates(point: Point) -> list[float]:
    return [
        side.output_throughput
        for one in point.rounds
        for side in (one.original, one.converted, *one.rivals.values())
    ]


def _of(side: str, measured: Point | Round) -> float:
    """The output throughput of one side, of a load or of one of its rounds."""
    if side not in measured.rivals:
        value: float = getattr(measured, side).output_throughput
        return value
    rival = measured.rivals[side]
    return (rival.figures if isinstance(rival, Rival) else rival).output_throughput


def _panel(axes: Axes, points: Sequence[Point], key: str) -> None:
    places = [getattr(point, key) for point in points]
    rivals = points[0].rivals
    for side, style in (
        ("original", {"color": ORIGINAL_COLOUR, "marker": "*"}),
        ("converted", {"color": "C0", "marker": "o"}),
        *((name, {"marker": "s", "color": f"C{place + 1}"}) for place, name in enumerate(rivals)),
    ):
        middle = [_of(side, point) for point in points]
        rounds = [[_of(side, one) for one in point.rounds] for point in points]
        below = [value - min(each) for value, each in zip(middle, rounds, strict=True)]
        above = [max(each) - value for value, each in zip(middle, rounds, strict=True)]
        label = f"original, {side}" if side in rivals else side
        options: dict[str, Any] = {"label": label, "capsize": 3, **style}
        axes.errorbar(places, middle, yerr=[below, above], **options)
    for place, point in zip(places, points, strict=True):
        top = max(point.original.output_throughput, point.converted.output_throughput)
        axes.annotate(
            f"{point.ratios.output_throughput or 0:.2f}x", (place, top), (0, 8),
            textcoords="offset points", ha="center",
        )  # fmt: skip
    axes.set_xscale("log", base=2)
    axes.set_xticks(places, [str(place) for place in places])
    axes.minorticks_off()
    axes.set_ylim(0, 1.25 * max(value for point in points for value in _rates(point)))
    axes.set_ylabel("output tokens per second")
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.legend()
