"""Progress of long work: bars on a terminal, a line now and then elsewhere."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from threading import Event, Thread
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.text import Text

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
            yield self._whole.task(description, total)
        elif not self._console.is_terminal:
            logger.info("%s: %d steps", description, total)
            yield _Lines(description, total)
            logger.info("%s: done", description)
        else:
            columns = (
                TextColumn("{task.description}", markup=False),
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
        self._whole = _Whole(shares)
        shown = self._bar if self._console.is_terminal else self._lines
        try:
            with shown(description, self._whole):
                yield
        finally:
            self._whole = None

    @contextmanager
    def _bar(self, description: str, whole: "_Whole") -> Iterator[None]:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            _Times(),
            TextColumn("{task.fields[stage]}"),
        )
        with RichProgress(*columns, console=self._console) as bars:
            bar = bars.add_task(description, total=1.0, stage="")
            whole.listen(lambda: bars.update(bar, completed=whole.done, stage=whole.stage))
            yield
            bars.update(bar, completed=1.0)

    @contextmanager
    def _lines(self, description: str, whole: "_Whole") -> Iterator[None]:
        ended = Event()
        start = time.monotonic()

        def tell() -> None:
            while not ended.wait(SECONDS_BETWEEN_LINES):
                times = _times(whole.done, time.monotonic() - start)
                logger.info(
                    "%s: %.0f %%, %s (%s)", description, 100 * whole.done, times, whole.stage
                )

        teller = Thread(target=tell, daemon=True)
        teller.start()
        try:
            yield
        finally:
            ended.set()
            teller.join()


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


class _Whole:
    """The state of several tasks together.

    Args:
        shares: how long each task takes, up to a common factor.

    Attributes:
        done: part of the whole, from 0 to 1.
        stage: the task that runs, and how it goes.
    """

    def __init__(self, shares: Mapping[str, float]) -> None:
        total = sum(shares.values())
        self._shares = {task: share / total for task, share in shares.items()}
        self._changed: Callable[[], None] = lambda: None
        self.done, self.stage = 0.0, ""

    def listen(self, changed: Callable[[], None]) -> None:
        """Call ``changed`` after every step."""
        self._changed = changed

    def task(self, description: str, total: int) -> Advance:
        """The advance function of one of the tasks."""
        step = self._shares.get(description, 0.0) / max(1, total)

        def advance(note: str = "") -> None:
            self.done = min(1.0, self.done + step)
            self.stage = f"{description}, {note}" if note else description
            self._changed()

        self.stage = description
        self._changed()
        return advance


class _Times(ProgressColumn):
    """Elapsed and remaining time of a whole."""

    def render(self, task: Task) -> Text:
        """The times as they are now."""
        return Text(_times(task.completed, task.elapsed or 0.0))


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
