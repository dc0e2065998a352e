"""The memory of this machine that an engine on CPUs may use, and the part of it for its cache."""

from collections.abc import Iterator
from pathlib import Path

from vllm_mha2mla.errors import EngineMemoryError

ENGINE_BYTES = 2 << 30
"""Memory of an engine on CPUs beside weights and cache: three Python processes with PyTorch, and
intermediate results."""

GIB = 1 << 30


def free_bytes(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Memory that a new program can have: on the machine, and in the control groups it runs in.

    File contents that the kernel keeps but can drop count as free.

    Args:
        proc: the ``proc`` file system.
        cgroups: where control groups are mounted, version 1 or 2.

    Returns:
        bytes, or ``None`` where the system does not say.
    """
    limits = list(_cgroups_free(proc, cgroups))
    available = _table(proc / "meminfo").get("MemAvailable:")
    if available is not None:
        limits.append(available * 1024)
    return min(limits, default=None)


def _cgroups_free(proc: Path, cgroups: Path) -> Iterator[int]:
    """Free bytes below every memory limit that holds for this process, its parents' included."""
    for line in _text(proc / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            root, limit, usage, droppable = cgroups, "max", "current", "inactive_file"
        elif "memory" in controllers.split(","):
            root, limit, usage = cgroups / "memory", "limit_in_bytes", "usage_in_bytes"
            droppable = "total_inactive_file"
        else:
            continue
        group = root / path.strip("/")
        # Inside a container its group is mounted as the root, whatever path the host gives it.
        for folder in {group, *group.parents, root}:
            if not folder.is_relative_to(root):
                continue
            most, used = (_text(folder / f"memory.{name}").strip() for name in (limit, usage))
            if most.isdecimal() and used.isdecimal():
                cached = _table(folder / "memory.stat").get(droppable, 0)
                yield max(0, int(most) - int(used) + cached)


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _table(path: Path) -> dict[str, int]:
    """First number of every line, by the word before it."""
    rows = (line.split() for line in _text(path).splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) > 1 and row[1].isdecimal()}


def cache_bytes(free: int, weights: int, one_request: int, all_requests: int) -> int:
    """Choose the size of a CPU engine's cache: half of what weights and engine leave free.

    The other half stays for other programs, and for the engine's own peaks. The cache is never
    larger than all requests together can fill; it is larger than half only where one request of
    the full length needs that.

    Args:
        free: memory that is free.
        weights: of the model in this process.
        one_request: cache of the longest request.
        all_requests: cache of as many such requests as the engine runs at once.

    Raises:
        EngineMemoryError: weights and engine alone need more than is free.
    """
    spare = free - weights - ENGINE_BYTES
    if spare <= 0:
        raise EngineMemoryError(
            f"{free / GIB:.2f} GiB of memory are free, but the engine needs "
            f"{(weights + ENGINE_BYTES) / GIB:.2f} GiB beside its cache ({weights / GIB:.2f} GiB "
            "for weights); end other programs, or set --kv-cache-memory-bytes to try anyway"
        )
    return min(all_requests, max(spare // 2, min(one_request, spare)))
