"""Damaged and hostile checkpoints: each has to be refused in one line, or read exactly.

``python -m tests.fuzz --count 10000`` (``make fuzz``). Every case has a number; the same seed and
number give the same case again: ``--seed 0 --only 4711``.
"""

import argparse
import logging
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from tests.fuzz import sandbox
from tests.fuzz.cases import KINDS, Case, Failure, run_case, write_bases

# Seconds between two lines of progress.
EVERY = 30


def main(arguments: list[str] | None = None) -> int:
    """Run the cases and print the table; 1 if any is wrong."""
    options = _options(arguments)
    logging.disable(logging.CRITICAL)
    work = Path(tempfile.mkdtemp(prefix="mha2mla-fuzz-"))
    try:
        numbers = range(options.first, options.first + options.count)
        if options.only is not None:
            numbers = range(options.only, options.only + 1)
        return _run(options, numbers, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _run(options: argparse.Namespace, numbers: range, work: Path) -> int:
    write_bases(work / "bases", options.kind)
    counts: Counter[tuple[str, str]] = Counter()
    failures: list[Failure] = []
    cases = [Case(options.seed, number, options.kind) for number in numbers]
    began = told = time.monotonic()
    outcomes = _until_interrupted(_outcomes(cases, options.jobs, work))
    for done, (case, damage, outcome) in enumerate(outcomes):
        counts[case.kind, outcome.verdict] += 1
        if outcome.verdict == "wrong":
            failures.append(Failure(case, damage, outcome.detail))
            _say(failures[-1].line())
        elif options.only is not None:
            _say(f"{damage}\n{outcome}")
        if time.monotonic() - told > EVERY:
            told = time.monotonic()
            _say(f"{done + 1} of {len(numbers)}, {len(failures)} wrong")
    _say(_table(counts))
    _say(f"{time.monotonic() - began:.0f} s, seed {options.seed}")
    return 1 if failures else 0


def _until_interrupted(outcomes: Iterator[Any]) -> Iterator[Any]:
    """The outcomes until Ctrl-C, which shows the table of what was read so far."""
    with suppress(KeyboardInterrupt):
        yield from outcomes


def _outcomes(
    cases: list[Case], jobs: int, work: Path
) -> Iterator[tuple[Case, str, sandbox.Outcome]]:
    run = partial(run_case, work=work)
    if jobs == 1:
        yield from map(run, cases)
        return
    # Ctrl-C is for the process that shows the table.
    ignore = partial(signal.signal, signal.SIGINT, signal.SIG_IGN)
    with multiprocessing.get_context("fork").Pool(jobs, ignore) as pool:
        yield from pool.imap_unordered(run, cases, chunksize=4)


def _table(counts: Counter[tuple[str, str]]) -> str:
    columns = ("refused", "right", "wrong")
    lines = ["| kind | cases | refused | accepted and right | wrong |", "|---|---|---|---|---|"]
    for kind in (*KINDS, "all"):
        found = [sum(counts[k, c] for k in KINDS if kind in (k, "all")) for c in columns]
        if sum(found):
            lines.append(f"| {kind} | {sum(found)} | {' | '.join(map(str, found))} |")
    return "\n".join(lines)


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tests.fuzz", description=__doc__)
    parser.add_argument("--count", type=int, default=10000, help="cases to run")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0, help="another seed, other cases")
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side")
    parser.add_argument("--only", type=int, metavar="NUMBER", help="run one case and describe it")
    parser.add_argument("--kind", choices=KINDS, help="cases of one kind only")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
