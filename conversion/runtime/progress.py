"""Progress of long work: bars on a terminal, a line now and then elsewhere."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 30.0


class Advance(Protocol):
    """The function that a piece of work calls after each of its steps."""

    def __call__(self, note: str = "") -> None:
        """One more step.

        Args:
            note: how it goes, in a few words.
        """
        ...


class Progress:
    """Says what is being done and how far it is.

    Args:
        console: where the bars go; ``None`` for silence.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console
        self._whole: _Whole | None = None

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Advance]:
        """A piece of work of ``total`` steps; call what it yields after each.

        Within :meth:`whole` it moves the bar of the whole, elsewhere it has one of its own.
        """
        if self._console is None:
            yield lambda note="": None
        elif self._whole is not None:
            yield self._whole.stage(description, total)
        elif not self._console.is_terminal:
            logger.info("%s: %d steps", description, total)
            yield _Lines(description, total)
            logger.info("%s: done", description)
        else:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
            )
            with RichProgress(*columns, console=self._console) as bars:
                bar = bars.add_task(description, total=total, note="")
                yield lambda note="": bars.update(bar, advance=1, note=note)

    @contextmanager
    def whole(self, description: str, shares: Mapping[str, float]) -> Iterator[None]:
        """Work of several tasks, shown as one: elapsed and remaining time of all of them.

        Args:
            description: of the work.
            shares: how long each task takes, by its description, up to a common factor. A task
                that is not named takes no share. Within a whole already, a smaller one is part of
                it: its tasks count by the shares that are there.
        """
        if self._console is None or self._whole is not None:
            yield
            return
        if not self._console.is_terminal:
            self._whole = _Whole(shares, _WholeLines(description).show)
            try:
                yield
            finally:
                self._whole = None
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[times]}"),
            TextColumn("{task.fields[stage]}"),
        )
        with RichProgress(*columns, console=self._console) as bars:
            bar = bars.add_task(description, total=1.0, times="", stage="")

            def show(part: float, elapsed: float, stage: str) -> None:
                bars.update(bar, completed=part, times=_times(part, elapsed), stage=stage)

            self._whole = _Whole(shares, show)
            try:
                yield
                bars.update(bar, completed=1.0)
            finally:
                self._whole = None


class _Lines:
    """Progress of a task where there is no terminal: a line now and then."""

    def __init__(self, description: str, total: int) -> None:
        self._description = description
        self._total = total
        self._done = 0
        self._last = time.monotonic()

    def __call__(self, note: str = "") -> None:
        self._done += 1
        if time.monotonic() - self._last >= SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            said = f", {note}" if note else ""
            logger.info("%s: %d of %d%s", self._description, self._done, self._total, said)


class _WholeLines:
    """Progress of a whole where there is no terminal."""

    def __init__(self, description: str) -> None:
        self._description = description
        self._last = time.monotonic()

    def show(self, part: float, elapsed: float, stage: str) -> None:
        if time.monotonic() - self._last >= SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            logger.info(
                "%s: %.0f %%, %s (%s)",
                self._description, 100 * part, _times(part, elapsed), stage,
            )  # fmt: skip


class _Whole:
    """The state of several tasks together."""

    def __init__(
        self, shares: Mapping[str, float], show: Callable[[float, float, str], None]
    ) -> None:
        total = sum(shares.values())
        self._shares = {task: share / total for task, share in shares.items()}
        self._show = show
        self._start = time.monotonic()
        self._done = 0.0

    def stage(self, description: str, total: int) -> Advance:
        step = self._shares.get(description, 0.0) / max(1, total)
        self._update(description)

        def advance(note: str = "") -> None:
            self._done = min(1.0, self._done + step)
            self._update(f"{description}, {note}" if note else description)

        return advance

    def _update(self, stage: str) -> None:
        self._show(self._done, time.monotonic() - self._start, stage)


def _times(part: float, elapsed: float) -> str:
    """``1:05 elapsed, about 3:10 left``; what is left is told once it can be guessed."""
    said = f"{_clock(elapsed)} elapsed"
    if part < 0.03:
        return said
    return f"{said}, about {_clock(elapsed * (1 - part) / part)} left"


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
