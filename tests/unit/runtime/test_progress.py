"""Progress of several tasks as one, without a terminal."""

import io
import logging

import pytest
from rich.console import Console

from conversion.runtime import progress as module
from conversion.runtime.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_a_whole_tells_elapsed_and_remaining_time_of_all_its_tasks(clock, caplog):
    caplog.set_level(logging.INFO)
    progress = Progress(Console(file=io.StringIO()))
    with progress.whole("Converting", {"Reading": 1, "Fitting": 3}):
        for name in ("Reading", "Fitting"):
            with progress.task(name, 10) as advance:
                for _ in range(10):
                    clock[0] += 20 if name == "Fitting" else 7
                    advance()
    assert caplog.messages[0] == "Converting: 12 %, 0:35 elapsed, about 4:05 left (Reading)"
    assert caplog.messages[-1] == "Converting: 100 %, 4:30 elapsed, about 0:00 left (Fitting)"
    assert len(caplog.messages) < 12


def test_a_task_that_has_no_share_does_not_move_the_whole(clock, caplog):
    caplog.set_level(logging.INFO)
    progress = Progress(Console(file=io.StringIO()))
    with progress.whole("Converting", {"Fitting": 1}), progress.task("Other", 2) as advance:
        clock[0] += 31
        advance("going well")
    assert caplog.messages == ["Converting: 0 %, 0:31 elapsed (Other, going well)"]


def test_a_task_alone_says_its_steps(caplog):
    caplog.set_level(logging.INFO)
    with Progress(Console(file=io.StringIO())).task("Reading", 3) as advance:
        advance()
    assert caplog.messages == ["Reading: 3 steps", "Reading: done"]


def test_bars_on_a_terminal():
    out = io.StringIO()
    progress = Progress(Console(file=out, force_terminal=True, width=100))
    with progress.whole("Converting", {"Fitting": 1}), progress.task("Fitting", 2) as advance:
        advance()
        advance("done")
    assert "Converting" in out.getvalue()
    assert "100 %" in out.getvalue()
