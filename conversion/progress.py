"""Progress of long work: bars on a terminal, log lines elsewhere."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

logger = logging.getLogger(__name__)


class Progress:
    """Says what is being done and how far it is.

    Args:
        console: where the bars go; ``None`` for silence.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console

    @contextmanager
    def task(self, description: str, total: int) -> Iterator[Callable[[], None]]:
        """A piece of work of ``total`` steps; call what it yields after each."""
        if self._console is None:
            yield lambda: None
            return
        if not self._console.is_terminal:
            logger.info("%s: %d steps", description, total)
            yield lambda: None
            logger.info("%s: done", description)
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with RichProgress(*columns, console=self._console) as bars:
            bar = bars.add_task(description, total=total)
            yield lambda: bars.advance(bar)
