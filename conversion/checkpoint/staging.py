"""A folder under a temporary name, moved into place when it is whole."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conversion.checkpoint.locks import locked
from conversion.errors import OutputError


@contextmanager
def staged_folder(out: Path, overwrite: bool, *originals: str) -> Iterator[Path]:
    """A folder to write into that becomes ``out`` when the block ends well.

    Whatever ends it otherwise, an error or Ctrl-C, leaves nothing behind. A killed process leaves
    ``.OUT.partial`` and its lock file beside ``out``, without a config.json; the next run removes
    them.

    Args:
        out: the folder to create.
        overwrite: replace a checkpoint that is there.
        originals: names of models that it may not replace: what it is made from.

    Raises:
        OutputError: ``out`` exists and may not be replaced, or cannot be written.
    """
    check_output(out, overwrite, *originals)
    partial = out.parent / f".{out.name}.partial"
    replaced = out.parent / f".{out.name}.replaced"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with locked(out.parent / f".{out.name}.partial.lock", out):
            partial.mkdir(exist_ok=True)
            try:
                _empty(partial)
                yield partial
                # Hours may have passed.
                check_output(out, overwrite, *originals)
                _swap(partial, out, replaced)
            except BaseException:
                _remove(partial)
                raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutputError(
                f"{out}: the disk is full; free some space or choose another folder"
            ) from error
        raise OutputError(f"{out}: cannot be written ({error})") from error


def check_output(out: Path, overwrite: bool, *originals: str) -> None:
    """Refuse an output that is in the way, before any work is done.

    Arguments and errors as for :func:`staged_folder`.
    """
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise OutputError(f"{out}: exists and is not a folder; choose another name")
    if out.exists() and not overwrite:
        raise OutputError(f"{out}: already exists; choose another folder or pass --overwrite")
    here = out.exists() and Path.cwd().is_relative_to(out.resolve())
    if here or out.name in ("", "..") or os.path.ismount(out):
        raise OutputError(
            f"{out}: a mount point or the current folder cannot be replaced; name a folder in it"
        )
    if out.exists() and any(out.iterdir()) and not (out / "config.json").exists():
        raise OutputError(
            f"{out}: holds files but no config.json, so it is no checkpoint to overwrite; "
            "choose another folder"
        )
    for original in originals:
        path = Path(original).expanduser()
        if path.exists() and path.resolve().is_relative_to(out.resolve()):
            raise OutputError(
                f"{out}: would replace {original}, which it is made from; choose another folder"
            )


def _swap(partial: Path, out: Path, replaced: Path) -> None:
    _remove(replaced)
    if out.exists():
        out.rename(replaced)
    try:
        partial.rename(out)
    except BaseException:
        if replaced.exists():
            replaced.rename(out)
        raise
    _remove(replaced)


def _empty(folder: Path) -> None:
    for leftover in folder.iterdir():
        leftover.unlink()


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
