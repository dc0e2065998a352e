"""Serving the original and the converted model in turn.

Both servers are up at once and one of them is driven at a time, so that every load goes to one
right after the other and what the machine does meanwhile falls on both. That costs memory for two;
an idle vLLM leaves the cores alone (on a CPU its three processes took 0 to 1 % of one). With one at
a time they alternate round by round, and every round pays for two starts.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from conversion.bench.drive import drive
from conversion.bench.loads import Load
from conversion.bench.results import Figures, Round
from conversion.bench.server import Server, serve
from conversion.runtime.progress import Progress

logger = logging.getLogger(__name__)

ORIGINAL, CONVERTED = "original", "converted"
WARM_UP_TOKENS = 16
WARM_UP_SEED = 0


@dataclass(frozen=True)
class Side:
    """One of the two.

    Attributes:
        name: ``original`` or ``converted``.
        folder: its model.
        options: of its ``vllm serve``.
    """

    name: str
    folder: Path
    options: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        original, converted: the two.
        loads: the sweep; the seeds are replaced.
        rounds: how often each load is put on each.
        one_at_a_time: never two servers.
        start_timeout: seconds.
        scratch: folder for logs.
    """

    original: Side
    converted: Side
    loads: tuple[Load, ...]
    rounds: int
    one_at_a_time: bool
    start_timeout: float
    scratch: Path


@dataclass(frozen=True)
class _Up:
    side: Side
    server: Server


class _Sheet:
    """Collects figures by load and round."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._found: dict[tuple[int, int, str], Figures] = {}

    def measure(self, up: _Up, number: int, index: int) -> None:
        """Put the load with this index on a server, in this round."""
        # The same prompts for both, never the same twice.
        seed = WARM_UP_SEED + 1 + number * len(self._plan.loads) + index
        load = replace(self._plan.loads[index], seed=seed)
        self._found[index, number, up.side.name] = drive(
            up.server, up.side.folder, load, self._plan.scratch
        )

    def report(self, number: int) -> None:
        """Say what a round found. Not within a bar, which a log line would tear."""
        for index, load in enumerate(self._plan.loads):
            logger.info(
                "%d + %d tokens, %d at once: original %.1f, converted %.1f output tokens/s",
                load.input_len, load.output_len, load.max_concurrency,
                self._found[index, number, ORIGINAL].output_throughput,
                self._found[index, number, CONVERTED].output_throughput,
            )  # fmt: skip

    def rounds(self) -> list[list[Round]]:
        """For every load its rounds."""
        return [
            [
                Round(
                    original=self._found[index, number, ORIGINAL],
                    converted=self._found[index, number, CONVERTED],
                )
                for number in range(self._plan.rounds)
            ]
            for index in range(len(self._plan.loads))
        ]


def run(plan: Plan, progress: Progress) -> list[list[Round]]:
    """Measure everything.

    Returns:
        for every load its rounds.

    Raises:
        ServerError: a server did not start or died, or a benchmark failed.
    """
    sheet = _Sheet(plan)
    if plan.one_at_a_time:
        _one_at_a_time(plan, sheet, progress)
    else:
        _together(plan, sheet, progress)
    return sheet.rounds()


def _together(plan: Plan, sheet: _Sheet, progress: Progress) -> None:
    with (
        _serving(plan, plan.original, progress) as original,
        _serving(plan, plan.converted, progress) as converted,
    ):
        for number in range(plan.rounds):
            label = f"Round {number + 1} of {plan.rounds}"
            with progress.task(label, 2 * len(plan.loads)) as advance:
                for index in range(len(plan.loads)):
                    # First and second in turn: neither always follows the other.
                    for up in (original, converted)[:: -1 if number % 2 else 1]:
                        sheet.measure(up, number, index)
                        advance()
            sheet.report(number)


def _one_at_a_time(plan: Plan, sheet: _Sheet, progress: Progress) -> None:
    for number in range(plan.rounds):
        for side in (plan.original, plan.converted)[:: -1 if number % 2 else 1]:
            label = f"Round {number + 1} of {plan.rounds}, {side.name}"
            with (
                _serving(plan, side, progress) as up,
                progress.task(label, len(plan.loads)) as advance,
            ):
                for index in range(len(plan.loads)):
                    sheet.measure(up, number, index)
                    advance()
        sheet.report(number)


@contextmanager
def _serving(plan: Plan, side: Side, progress: Progress) -> Iterator[_Up]:
    with ExitStack() as stack:
        with progress.task(f"Starting the {side.name}", 2) as advance:
            log = plan.scratch / f"{side.name}.log"
            begin = time.monotonic()
            server = stack.enter_context(
                serve(side.folder, log, *side.options, timeout=plan.start_timeout)
            )
            advance()
            ready = time.monotonic() - begin
            # The first steps allocate and choose kernels.
            first = plan.loads[0]
            warm_up = replace(
                first,
                output_len=min(first.output_len, WARM_UP_TOKENS),
                num_prompts=first.max_concurrency,
                seed=WARM_UP_SEED,
            )
            drive(server, side.folder, warm_up, plan.scratch)
            advance()
        logger.info(
            "%s ready after %.0f s, %s tokens of cache", side.name, ready,
            f"{server.cache_tokens:,}",
        )  # fmt: skip
        yield _Up(side, server)
