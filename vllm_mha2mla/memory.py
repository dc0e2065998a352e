"""The memory of this machine that an engine on CPUs may use, and the part of it for its cache."""

from pathlib import Path

from vllm_mha2mla.cgroups import free_in_groups, table
from vllm_mha2mla.errors import EngineMemoryError

ENGINE_BYTES = 2 << 30
"""Memory of an engine on CPUs beside weights and cache: three Python processes with PyTorch, and
intermediate results."""

GIB = 1 << 30


def free_bytes(root: Path = Path("/")) -> int | None:
    """Memory that a new program can have: on the machine, and in the control groups it runs in.

    File contents that the kernel keeps but can drop count as free. Swap does not.

    Args:
        root: the root of the file system.

    Returns:
        bytes, or ``None`` where the system does not say.
    """
    limits = list(free_in_groups(root))
    available = table(root / "proc/meminfo").get("MemAvailable:")
    if available is not None:
        limits.append(available * 1024)
    return min(limits, default=None)


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
