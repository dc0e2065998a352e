"""A ``vllm serve`` that lives as long as a ``with`` block."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
CACHE_SIZE = re.compile(r"KV cache size: ([\d,]+) tokens")
TAIL_LINES = 30
# What ends the server, and how many seconds each may take. A ready one ends in a second or two;
# one that is still starting may not listen at all, and has nothing to lose.
STOP_STEPS = ((signal.SIGTERM, 10.0), (signal.SIGKILL, 10.0))


class ServerError(Exception):
    """The server did not start, or died.

    Args:
        message: what happened, one line.
        tail: the last lines the server wrote.
    """

    def __init__(self, message: str, tail: str = "") -> None:
        super().__init__(message)
        self.tail = tail


@dataclass(frozen=True)
class Server:
    """A running server.

    Attributes:
        url: of its root, without a slash at the end.
        log: file with everything it says.
    """

    url: str
    log: Path

    @property
    def cache_tokens(self) -> int:
        """Tokens that its cache holds, as the engine counted them at the start.

        Raises:
            ServerError: the log does not say.
        """
        found = CACHE_SIZE.search(self.log.read_text("utf-8", "replace"))
        if found is None:
            raise ServerError(f"{self.log}: no line with 'KV cache size'; is this vLLM 0.32?")
        return int(found[1].replace(",", ""))

    def error(self, what: str) -> ServerError:
        """An error with what the server said last."""
        lines = self.log.read_text("utf-8", "replace").splitlines()
        return ServerError(f"{what}; all it said is in {self.log}", "\n".join(lines[-TAIL_LINES:]))


@contextmanager
def serve(folder: Path, log: Path, *options: str, timeout: float = 300) -> Iterator[Server]:
    """Serve the model in ``folder`` on a free port of 127.0.0.1.

    No process is left however the block ends, also on Ctrl-C and, after ``end_on_signals()``, on
    SIGTERM and SIGHUP. Use it in the main thread.

    Args:
        folder: Hugging Face model folder.
        log: file for the server's output; replaced.
        options: further ones for ``vllm serve``.
        timeout: seconds that the start may take.

    Raises:
        ServerError: vLLM is not installed, or the server died or was not ready in time.
    """
    vllm = Path(sys.executable).with_name("vllm")
    if not vllm.is_file():
        raise ServerError(f"{vllm}: not there; run: make setup")
    port = _free_port()
    server = Server(f"http://127.0.0.1:{port}", log)
    command = [
        str(vllm),
        "serve",
        str(folder),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        *options,
    ]
    process = None
    try:
        with log.open("wb") as output, hold_signals():
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | ENVIRONMENT,
                start_new_session=True,  # a group of its own: all its processes end together
            )
        _wait_until_ready(process, server, timeout)
        yield server
    finally:
        if process is not None:
            with hold_signals():
                _stop(process)


@contextmanager
def hold_signals() -> Iterator[None]:
    """Let Ctrl-C and the like wait until the block is over, so that it is not cut in two."""
    held: list[int] = []
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    for number in STOP_SIGNALS:
        signal.signal(number, lambda number, _: held.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if held:
        signal.raise_signal(held[0])


def end_on_signals() -> None:
    """Let SIGTERM and SIGHUP end the program as Ctrl-C does: through every ``finally``."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_ready(process: subprocess.Popen[bytes], server: Server, timeout: float) -> None:
    # A proxy of the environment must not be asked for this machine's own address.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise server.error(f"vllm serve ended with code {process.returncode}")
        with contextlib.suppress(OSError), opener.open(f"{server.url}/health", timeout=5):
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
