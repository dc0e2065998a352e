"""One reading in a process of its own: limits of time and memory, and a watch on what it does."""

import json
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

# Above what the process has when it starts.
MEMORY = 2 << 30
LARGEST_FILE = 64 << 20
CPU_SECONDS = 60
WALL_SECONDS = 180
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
# Audit events with the places of the paths that they change, and of the open folders, or 0 for
# none, that these are relative to.
CHANGES = {
    "os.mkdir": ((0,), (2,)),
    "os.remove": ((0,), (1,)),
    "os.rmdir": ((0,), (1,)),
    "os.truncate": ((0,), (0,)),
    "os.rename": ((0, 1), (2, 3)),
    "os.link": ((1,), (3,)),
    "os.symlink": ((1,), (2,)),
}
NEVER = {
    "pickle.find_class",
    "subprocess.Popen",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "socket.connect",
    "socket.getaddrinfo",
}


@dataclass(frozen=True)
class Outcome:
    """``refused``, ``right`` or ``wrong``, and why."""

    verdict: str
    detail: str


class Watch:
    """Python's audit hook: notes writes outside of one folder, and code that is not the product's.

    Args:
        folder: the only one that may be written to.
        model: no code of this folder may run.
    """

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self.model = folder, model
        self.on = True
        self.seen: list[str] = []
        sys.addaudithook(self._note)

    def _note(self, event: str, arguments: tuple) -> None:
        if not self.on:
            return
        if event in NEVER:
            self.seen.append(f"{event} {str(arguments)[:80]}")
        elif event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES:
            self._written(event, arguments[0])
        elif event in CHANGES:
            paths, folders = CHANGES[event]
            for path, folder in zip(paths, folders, strict=True):
                self._written(event, arguments[path], arguments[folder] if folder else -1)
        elif event == "exec" and str(self.model) in getattr(arguments[0], "co_filename", ""):
            self.seen.append(f"code of {arguments[0].co_filename} was run")

    def _written(self, event: str, path: object, folder: int = -1) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return
        here = os.getcwd() if folder < 0 else os.readlink(f"/proc/self/fd/{folder}")
        where = os.path.normpath(os.path.join(here, os.fsdecode(path)))
        # Importing a library may make the folder of torch's compiler, whatever the model.
        known = where == os.devnull or Path(where).name.startswith("torchinductor_")
        if not known and not f"{where}{os.sep}".startswith(f"{self.folder}{os.sep}"):
            self.seen.append(f"{event} {where}")


def run(case: Path, read: Callable[[Path, Watch], str]) -> Outcome:
    """Read a checkpoint in a child process.

    Args:
        case: its folder; everything in it but ``out`` has to stay as it is.
        read: called with the folder and the watch; what it returns begins with the verdict.
    """
    before = _listing(case)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        _child(case, read, writing)
    os.close(writing)
    try:
        report = _report(child, reading)
    finally:
        os.close(reading)
    outcome = Outcome(*report)
    if _listing(case) != before:
        changed = {path for path, _ in _listing(case).items() ^ before.items()}
        return Outcome("wrong", f"changed {sorted(changed)[:3]} after: {outcome}")
    return outcome


def _child(case: Path, read: Callable[[Path, Watch], str], pipe: int) -> None:
    answer = ["wrong", "no answer"]
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(null, stream)
        os.chdir(case)
        for limit, value in (
            (resource.RLIMIT_AS, _virtual_memory() + MEMORY),
            (resource.RLIMIT_FSIZE, LARGEST_FILE),
            (resource.RLIMIT_CPU, CPU_SECONDS),
            (resource.RLIMIT_CORE, 0),
        ):
            resource.setrlimit(limit, (value, value))
        # After a fork, PyTorch replaces its thread pool when it is next asked for, without a lock:
        # of several threads that ask at once, some would find none ("Invalid thread pool").
        torch.set_num_threads(1)
        watch = Watch(case / "out", case / "model")
        verdict, _, detail = read(case, watch).partition(" ")
        watch.on = False
        answer = [verdict, detail]
        if watch.seen:
            answer = ["wrong", f"{watch.seen[:3]} after: {verdict} {detail}"]
    except BaseException as error:
        answer = ["wrong", f"the fuzzer: {type(error).__name__}: {error}"]
    finally:
        os.write(pipe, json.dumps(answer).encode()[:60000])
        os._exit(0)


def _report(child: int, pipe: int) -> tuple[str, str]:
    end, data = time.monotonic() + WALL_SECONDS, b""
    while True:
        left = end - time.monotonic()
        if left <= 0 or not select.select([pipe], [], [], left)[0]:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "wrong", f"hangs: no answer after {WALL_SECONDS} s"
        chunk = os.read(pipe, 65536)
        if not chunk:
            break
        data += chunk
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return "wrong", f"crash: {signal.Signals(os.WTERMSIG(status)).name}"
    verdict, detail = json.loads(data)
    return verdict, detail


def _virtual_memory() -> int:
    pages = Path("/proc/self/statm").read_text().split()[0]
    return int(pages) * resource.getpagesize()


def _listing(case: Path) -> dict[str, tuple[int, int, int]]:
    """Every path outside of ``out``, with mode, size and time of change."""
    found = {}
    for folder, names, files in os.walk(case):
        if folder == str(case) and "out" in names:
            names.remove("out")
        for name in names + files:
            path = os.path.join(folder, name)
            status = os.lstat(path)
            found[path] = (status.st_mode, status.st_size, status.st_mtime_ns)
    return found
