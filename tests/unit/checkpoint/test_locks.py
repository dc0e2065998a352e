"""Locks on folders that are being written: on local disks, and on file systems that differ."""

import errno
import fcntl
import os
import signal
import stat
import subprocess
import sys

import pytest

from conversion.checkpoint.locks import locked
from conversion.errors import OutputError

HOLD = """
import sys
from pathlib import Path
from conversion.checkpoint.locks import locked
with locked(Path(sys.argv[1]), Path("out")):
    print("held", flush=True)
    sys.stdin.read()
"""
FLOCK = fcntl.flock


@pytest.fixture
def file(tmp_path):
    return tmp_path / "folder.lock"


def hold(file):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(file)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "held\n"
    return process


def test_another_process_is_kept_out_until_it_ends_or_is_killed(file):
    for end in (lambda process: process.stdin.close(), lambda process: process.kill()):
        with hold(file) as process:
            with pytest.raises(OutputError, match="another process is writing it"):
                locked(file, file).__enter__()
            end(process)
        assert process.returncode in (0, -signal.SIGKILL)
        with locked(file, file):
            pass
        assert not list(file.parent.iterdir())


def of_nfs(handle, operation):
    """As Linux locks on NFS, where a lock becomes one of the whole file on the server.

    Exclusive ones need a file that is open for writing (flock(2)), and folders have none that
    other machines see.
    """
    writable = fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
    if stat.S_ISDIR(os.fstat(handle).st_mode) or not writable:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    FLOCK(handle, operation)


def test_the_lock_is_one_that_nfs_passes_on(file, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", of_nfs)
    with (
        locked(file, file),
        pytest.raises(OutputError, match="another process"),
        locked(file, file),
    ):
        pass


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP])
def test_without_locks_it_goes_on_and_says_so(file, monkeypatch, caplog, code):
    def none(handle, operation):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", none)
    with locked(file, file):
        pass
    assert f"{file.parent}: this file system has no locks ({os.strerror(code)})" in caplog.text
    assert "let no other process write there" in caplog.text
    assert not list(file.parent.iterdir())


def test_other_errors_are_not_hidden(file, monkeypatch):
    def broken(handle, operation):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", broken)
    with pytest.raises(OSError, match="Input/output error"), locked(file, file):
        pass


def test_a_file_that_its_last_owner_removes_is_made_anew(file, monkeypatch):
    """Between open and lock: a lock on the removed file would keep nobody out."""
    removed = []

    def late(handle, operation):
        if not removed:
            file.unlink()
            removed.append(handle)
        FLOCK(handle, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with locked(file, file):
        assert file.exists()
        with pytest.raises(OutputError, match="another process"), locked(file, file):
            pass
    assert removed
