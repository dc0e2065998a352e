"""Puts the loads on the original, its rivals and the converted model in turn.

All servers are up at once, and one of them is driven at a time: every load goes to one right after
the other, so that whatever else the machine does affects all. That takes memory for all; an idle
vLLM leaves the cores alone (on a CPU its three processes took 0 to 1 % of one). With
``one_at_a_time`` the servers alternate round by round, and every round pays for two starts; so it
is on GPUs, whose memory seldom holds two, unless told otherwise.
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
    """One of the models.

    Attributes:
        name: ``original``, ``converted``, or ``original-`` and its ``--kv-cache-dtype``.
        folder: folder of the model.
        options: options of its ``vllm serve``.
        kv_cache_dtype: of a rival, the original's quantised cache.
    """

    name: str
    folder: Path
    options: tuple[str, ...]
    kv_cache_dtype: str | None = None


@dataclass(frozen=True)
class Plan:
    """The models, the loads and the order of the measurement.

    Attributes:
        original, converted: the two models.
        rivals: the original in quantised caches.
        loads: the loads of the sweep; their seeds are replaced.
        rounds: number of times that each load is put on each model.
        one_at_a_time: never run two servers at once.
        start_timeout: seconds that a start may take.
        scratch: folder for logs.
    """

    original: Side
    converted: Side
    loads: tuple[Load, ...]
    rounds: int
    one_at_a_time: bool
    start_timeout: float
    scratch: Path
    rivals: tuple[Side, ...] = ()

    def sides(self, number: int) -> list[Side]:
        """The order of a round; it alternates, so that no model always follows another."""
        order = [self.original, *self.rivals, self.converted]
        return order[::-1] if number % 2 else order


@dataclass(frozen=True)
class _Served:
    side: Side
    server: Server


class _Collector:
    """Collects figures by load and round."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._figures: dict[tuple[int, int, str], Figures] = {}

    def measure(self, served: _Served, number: int, index: int) -> None:
        """Put the load with this index on a server, in round ``number``."""
        # The same prompts for all models, and other prompts for every run on one server.
        seed = WARM_UP_SEED + 1 + number * len(self._plan.loads) + index
        load = replace(self._plan.loads[index], seed=seed)
        self._figures[index, number, served.side.name] = drive(
            served.server, served.side.folder, load, self._plan.scratch
        )

    def report(self, number: int) -> None:
        """Log the throughputs of a round; call it outside a bar, which a log line would tear."""
        for index, load in enumerate(self._plan.loads):
            logger.info(
                "%d + %d tokens, %d at once: original %.1f, converted %.1f output tokens/s",
                load.input_len, load.output_len, load.max_concurrency,
                self._figures[index, number, ORIGINAL].output_throughput,
                self._figures[index, number, CONVERTED].output_throughput,
            )  # fmt: skip

    def rounds(self) -> list[list[Round]]:
        """List the rounds of every load."""
        return [
            [
                Round(
                    original=self._figures[index, number, ORIGINAL],
                    converted=self._figures[index, number, CONVERTED],
                    rivals={
                        side.kv_cache_dtype: self._figures[index, number, side.name]
                        for side in self._plan.rivals
                        if side.kv_cache_dtype
                    },
                )
                for number in range(self._plan.rounds)
            ]
            for index in range(len(self._plan.loads))
        ]


def run(plan: Plan, progress: Progress) -> list[list[Round]]:
    """Measure every load in every round.

    Returns:
        the rounds of every load.

    Raises:
        ServerError: a server did not start or died, or a benchmark failed.
    """
    collector = _Collector(plan)
    if plan.one_at_a_time:
        _one_at_a_time(plan, collector, progress)
    else:
        _together(plan, collector, progress)
    return collector.rounds()


def _together(plan: Plan, collector: _Collector, progress: Progress) -> None:
    with ExitStack() as stack:
        served = {
            side.name: stack.enter_context(_serving(plan, side, progress)) for side in plan.sides(0)
        }
        for number in range(plan.rounds):
            label = f"Round {number + 1} of {plan.rounds}"
            with progress.task(label, len(served) * len(plan.loads)) as advance:
                for index in range(len(plan.loads)):
                    for side in plan.sides(number):
                        collector.measure(served[side.name], number, index)
                        advance()
            collector.report(number)


def _one_at_a_time(plan: Plan, collector: _Collector, progress: Progress) -> None:
    for number in range(plan.rounds):
        for side in plan.sides(number):
            label = f"Round {number + 1} of {plan.rounds}, {side.name}"
            with (
                _serving(plan, side, progress) as served,
                progress.task(label, len(plan.loads)) as advance,
            ):
                for index in range(len(plan.loads)):
                    collector.measure(served, number, index)
                    advance()
        collector.report(number)


@contextmanager
def _serving(plan: Plan, side: Side, progress: Progress) -> Iterator[_Served]:
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
        yield _Served(side, server)
