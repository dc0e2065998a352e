"""Progress of long work: bars on a terminal, log lines elsewhere."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 30.0


class Advance(Protocol):
    """The callback that a piece of work calls after each of its steps."""

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

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Advance]:
        """A piece of work of ``total`` steps; call what it yields after each."""
        if self._console is None:
            yield lambda note="": None
            return
        if not self._console.is_terminal:
            logger.info("%s: %d steps", description, total)
            yield _Lines(description, total)
            logger.info("%s: done", description)
            return
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


class _Lines:
    """Progress where there is no terminal: a line now and then."""

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
