"""The loss curve of a healing: a CSV while it runs, a plot at its end."""

import csv
import logging
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

CSV, PLOT = "healing.csv", "healing.png"
COLUMNS = ("step", "tokens", "loss", "learning_rate", "grad_norm")


class LossCurve:
    """The file ``healing.csv``, one row per logged step.

    Args:
        folder: the folder it is written to.
        tokens: tokens per step, on all devices.
    """

    def __init__(self, folder: Path, tokens: int) -> None:
        self.path = folder / CSV
        self._tokens = tokens

    def rewrite(self, logged: Sequence[dict[str, Any]]) -> None:
        """Start the file anew with the entries that Trainer has logged so far."""
        with self.path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow(COLUMNS)
        for entry in logged:
            self.append(entry)

    def append(self, entry: dict[str, Any]) -> None:
        """Append one of Trainer's log entries, if it has a loss."""
        if "loss" not in entry:
            return
        row = entry | {"tokens": entry["step"] * self._tokens}
        with self.path.open("a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerow(row.get(column, "") for column in COLUMNS)


def plot_curve(csv_file: Path, png: Path, title: str) -> None:
    """Plot loss over tokens, with its running mean; without matplotlib log a hint instead.

    Args:
        csv_file: the curve, as :class:`LossCurve` writes it.
        png: the image to write.
        title: title of the plot.
    """
    if find_spec("matplotlib") is None:
        logger.warning('%s: not drawn; for plots: pip install "vllm-mha2mla[eval]"', png.name)
        return
    from matplotlib.figure import Figure

    with csv_file.open(newline="", encoding="utf-8") as file:
        points = [(int(row["tokens"]), float(row["loss"])) for row in csv.DictReader(file)]
    if not points:
        return
    tokens, losses = zip(*points, strict=True)
    span = max(1, len(losses) // 20)
    means = [
        sum(losses[max(0, end - span) : end]) / min(span, end) for end in range(1, len(losses) + 1)
    ]
    figure = Figure(figsize=(7.5, 4.0))
    axes = figure.subplots()
    axes.plot(tokens, losses, linewidth=0.6, alpha=0.4)
    axes.plot(tokens, means, label=f"mean of {span} values")
    axes.set(xlabel="tokens", ylabel="loss", title=title)
    axes.legend()
    figure.savefig(png, dpi=120, bbox_inches="tight")
