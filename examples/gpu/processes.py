"""A function in a process of its own: a crash, a hang or a full GPU ends it and nothing else.

The processes are forked from one that has imported vLLM and touched no GPU, which saves each of
them the seconds of the imports. Where a forked process cannot use the GPU, ``start_with("spawn")``
starts fresh ones.
"""

import contextlib
import json
import multiprocessing
import os
import re
import shutil
import signal
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.context import ForkContext, SpawnContext
from pathlib import Path
from typing import Any

CONTEXTS: dict[str, ForkContext | SpawnContext] = {
    "fork": multiprocessing.get_context("fork"),
    "spawn": multiprocessing.get_context("spawn"),
}
STARTING = threading.Lock()
"""Held while a process is forked and while anything is printed: no fork copies a file in use."""

# A killed process that nobody waits for stays in its group for ever in some containers.
END_SECONDS = 3.0
ERROR = re.compile(r"\b\w+(?:Error|Exception): .+")
# The error that follows from another process's.
ELSEWHERE = "Engine core initialization failed"
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_state = {"method": "fork"}
_running: set[int] = set()


class ProcessError(Exception):
    """A process failed or took too long."""


def start_with(method: str) -> None:
    """Choose how processes start from now on: ``fork`` or ``spawn``."""
    _state["method"] = method


def isolated(
    log: Path,
    timeout: float,
    environment: dict[str, str],
    function: Callable[..., Any],
    *arguments: Any,
) -> Any:
    """Call a function in a process of its own and return what it returns, as JSON keeps it.

    Args:
        log: file for all that the process and its children print, replaced if it exists.
        timeout: seconds that the call may take.
        environment: variables that the process gets besides ours.
        function: a function at the top level of a module.
        arguments: the function's; they can be pickled.

    Raises:
        ProcessError: the process failed or was not done in time; the log says why.
    """
    result = log.with_suffix(".json")
    result.unlink(missing_ok=True)
    child = CONTEXTS[_state["method"]].Process(
        target=_run, args=(log, result, environment, function, arguments)
    )
    with STARTING:
        child.start()
    group = child.pid or 0
    _running.add(group)
    try:
        child.join(timeout)
    finally:
        late = child.is_alive()
        if late:
            child.kill()
        child.join()
        end_group(group)
        _running.discard(group)
    if late:
        raise ProcessError(f"not done after {timeout:.0f} s; see {log}")
    if child.exitcode != 0 or not result.is_file():
        raise ProcessError(f"{_reason(log)} (exit code {child.exitcode}; see {log})")
    return json.loads(result.read_text("utf-8"))


def end_with_this(folder: Path) -> None:
    """Let all processes end when this one is told to, and remove a folder that they work in.

    They would go on by themselves, since they are not in this one's group.
    """

    def end(number: int, _: Any) -> None:
        for group in tuple(_running):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(128 + number)

    for number in SIGNALS:
        signal.signal(number, end)


def _run(
    log: Path,
    result: Path,
    environment: dict[str, str],
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    os.setsid()  # a group of its own: all its processes end together
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for descriptor in (1, 2):
        os.dup2(output, descriptor)
    os.environ.update(environment)
    try:
        result.write_text(json.dumps(function(*arguments)), "utf-8")
    except BaseException:
        traceback.print_exc()
        # Not sys.exit: what hangs in an engine's threads would keep the process.
        os._exit(1)
    os._exit(0)


def end_group(group: int) -> None:
    """End all processes of a group and wait for it: the next one needs their GPU's memory."""
    deadline = time.monotonic() + END_SECONDS
    try:
        while time.monotonic() < deadline:
            os.killpg(group, signal.SIGKILL)
            time.sleep(0.05)
    except ProcessLookupError:
        pass


def _reason(log: Path) -> str:
    """Find the last error in a log, that of the engine's own process where there is one."""
    text = log.read_text("utf-8", "replace") if log.is_file() else ""
    errors = [found for found in ERROR.findall(text) if ELSEWHERE not in found]
    return (errors or text.splitlines() or ["no output"])[-1].strip()[:300]
