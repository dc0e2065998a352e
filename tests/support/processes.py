"""Commands in processes: their environment, ports, limits and ends."""

import os
import resource
from contextlib import contextmanager

import psutil


def environment():
    return os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def kill_with_children(process):
    """Kill what was launched and the processes it started, at once."""
    launched = psutil.Process(process.pid)
    for each in (launched, *launched.children(recursive=True)):
        each.kill()
    process.wait()


@contextmanager
def full_disk(limit):
    """A limit on the size of a file, in bytes, stands in for a full disk: the same write fails."""
    before, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, hard))


def one_line(folder, before, result):
    assert result.returncode == 2, result.stderr
    assert sorted(folder.iterdir()) == before
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert "Traceback" not in result.stderr
    return line
