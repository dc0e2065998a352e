"""Keeping a second process out of a folder that is being written, on this machine or another."""

import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from conversion.errors import OutputError

logger = logging.getLogger(__name__)

# A network file system whose server has no lock service, or a mount without locks.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@contextmanager
def locked(file: Path, out: Path) -> Iterator[None]:
    """Keep a second process out of a folder; a killed process gives up its lock.

    The lock is on a file that is open for writing. NFS passes such locks on to its server, where
    they hold for all machines. It does not pass on those of folders, nor of files that are open for
    reading. Where there are no locks, a warning says so.

    Args:
        file: the file to lock, which is made and removed.
        out: the folder that is being made, for messages.

    Raises:
        OutputError: another process has it.
        OSError: the file cannot be made.
    """
    handle = _open_locked(file, out)
    try:
        yield
    finally:
        # While the lock is held: who opened the file meanwhile sees that it is gone.
        with suppress(OSError):
            file.unlink()
        os.close(handle)


def _open_locked(path: Path, out: Path) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is(handle, path):
                return handle
        except BlockingIOError as error:
            os.close(handle)
            raise OutputError(
                f"{out}: another process is writing it; wait for it or choose another folder"
            ) from error
        except OSError as error:
            if error.errno in NO_LOCKS:
                logger.warning(
                    "%s: this file system has no locks (%s); let no other process write there",
                    *(path.parent, error.strerror),
                )
                return handle
            os.close(handle)
            raise
        # Its last owner has removed it between the two calls.
        os.close(handle)


def _is(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
