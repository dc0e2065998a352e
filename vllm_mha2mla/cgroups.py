"""Memory that the control groups of this process leave it: of containers, of systemd's slices.

A process is in one group of every hierarchy (cgroups(7)), and the limits of all groups above hold
too. Version 2 has one hierarchy, version 1 one for each controller. A container sees a part of it:
its own group is the root of what is mounted, whatever path ``/proc/self/cgroup`` gives.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

UNLIMITED = 1 << 60
"""Bytes from which a limit is none: version 1 writes the largest number of pages there is."""


class Hierarchy(NamedTuple):
    """One version's files about memory.

    Attributes:
        limits: the most that a group may use; of several the smallest. Above ``memory.high`` the
            kernel slows a group down until it is of no use.
        usage: what it uses.
        droppable: the line of ``memory.stat`` with file contents that the kernel can drop.
        default: where it is mounted if the system does not say.
    """

    limits: tuple[str, ...]
    usage: str
    droppable: str
    default: str


VERSION_1 = Hierarchy(
    ("memory.limit_in_bytes",),
    "memory.usage_in_bytes",
    "total_inactive_file",
    "sys/fs/cgroup/memory",
)
VERSION_2 = Hierarchy(
    ("memory.max", "memory.high"), "memory.current", "inactive_file", "sys/fs/cgroup"
)


def free_in_groups(root: Path) -> Iterator[int]:
    """Free bytes below every memory limit that holds for this process.

    Args:
        root: the root of the file system.
    """
    for line in text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            files, kind = VERSION_2, "cgroup2"
        elif "memory" in controllers.split(","):
            files, kind = VERSION_1, "cgroup"
        else:
            continue
        mounted, top = _mount(root, kind) or (root / files.default, "/")
        for folder in _groups(mounted, top, path):
            yield from _free(folder, files)


def _groups(mounted: Path, top: str, path: str) -> Iterator[Path]:
    """This process's group and those above it, as far as they are mounted.

    Args:
        mounted: where the hierarchy is mounted.
        top: the group that is mounted there.
        path: of this process's group.
    """
    group = PurePosixPath(path)
    inside = group.relative_to(top) if group.is_relative_to(top) else PurePosixPath()
    # Above a container's own group, ``..`` stands for groups that it does not see.
    parts = [part for part in inside.parts if part not in ("..", "/")]
    for depth in range(len(parts), -1, -1):
        yield mounted.joinpath(*parts[:depth])


def _free(folder: Path, files: Hierarchy) -> Iterator[int]:
    limits = (text(folder / name).strip() for name in files.limits)
    numbers = [int(limit) for limit in limits if limit.isdecimal() and int(limit) < UNLIMITED]
    used = text(folder / files.usage).strip()
    if numbers and used.isdecimal():
        cached = table(folder / "memory.stat").get(files.droppable, 0)
        yield max(0, min(numbers) - int(used) + cached)


def _mount(root: Path, kind: str) -> tuple[Path, str] | None:
    """Where the hierarchy with the memory controller is mounted, and which group there."""
    for line in text(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        system, _, options = after.partition(" ")
        if system == kind and (kind == "cgroup2" or "memory" in options.split()[-1].split(",")):
            top, mounted = before.split()[3:5]
            return root / mounted.lstrip("/"), top
    return None


def text(path: Path) -> str:
    """The text of a file; empty where it cannot be read."""
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""


def table(path: Path) -> dict[str, int]:
    """First number of every line, by the word before it."""
    rows = (line.split() for line in text(path).splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdecimal()}
