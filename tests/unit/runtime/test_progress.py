"""Progress of several tasks as one, without a terminal."""

import io
import logging
import time

import pytest
from rich.console import Console

from conversion.runtime import progress as module
from conversion.runtime.progress import Progress


@pytest.fixture
def quick_lines(monkeypatch, caplog):
    """The lines of a whole that tells how it goes every tenth of a second."""
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LINES", 0.1)
    caplog.set_level(logging.INFO)
    return caplog


def test_a_whole_tells_how_far_all_its_tasks_are(quick_lines):
    progress = Progress(Console(file=io.StringIO()))
    with progress.whole("Converting", {"Reading": 1, "Fitting": 3}):
        for name in ("Reading", "Fitting"):
            with progress.task(name, 2) as advance:
                advance()
                time.sleep(0.3)
                advance("nearly there")
                time.sleep(0.3)
    lines = quick_lines.messages
    assert all(line.startswith("Converting: ") for line in lines)
    for part in ("12 %", "25 %", "62 %", "100 %"):
        assert any(f"Converting: {part}" in line for line in lines), (part, lines)
    assert "(Fitting, nearly there)" in lines[-1]


def test_a_task_that_has_no_share_does_not_move_the_whole(quick_lines):
    progress = Progress(Console(file=io.StringIO()))
    with progress.whole("Converting", {"Fitting": 1}), progress.task("Other", 2) as advance:
        advance()
        time.sleep(0.3)
    assert quick_lines.messages[0] == "Converting: 0 %, 0:00 elapsed (Other)"


def test_a_whole_within_a_whole_counts_by_the_outer_shares(quick_lines):
    progress = Progress(Console(file=io.StringIO()))
    with progress.whole("Demo", {"Fitting": 1, "Serving": 1}):
        with progress.whole("Converting", {"Fitting": 1}), progress.task("Fitting", 1) as advance:
            advance()
        time.sleep(0.3)
    assert quick_lines.messages[-1].startswith("Demo: 50 %, ")


def test_remaining_time_is_told_once_it_can_be_guessed():
    assert module._times(0.01, 59.6) == "1:00 elapsed"
    assert module._times(0.125, 35) == "0:35 elapsed, about 4:05 left"
    assert module._times(0.5, 3700) == "1:01:40 elapsed, about 1:01:40 left"


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


def test_a_name_is_shown_as_it_is():
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    progress = Progress(console)
    with progress.task("Writing [bold] [/x]", 1) as advance:
        advance()
    with progress.whole("Converting [bold] [/x]", {}):
        pass
    assert "Writing [bold] [/x]" in console.file.getvalue()
    assert "Converting [bold] [/x]" in console.file.getvalue()
