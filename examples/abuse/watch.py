"""The server's state: its counters, the memory of its processes, its log."""

import asyncio
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from abuse.client import Client, UnansweredError
from conversion.bench.metrics import read_samples, sums
from vllm_mha2mla.versions import VLLM

METRICS = {
    "running": "vllm:num_requests_running",
    "waiting": "vllm:num_requests_waiting",
    "cache_usage": "vllm:kv_cache_usage_perc",
    "preemptions": "vllm:num_preemptions_total",
    "prefix_hits": "vllm:prefix_cache_hits_total",
    "tokens": "vllm:generation_tokens_total",
}
CACHE = "vllm:cache_config_info"
SETTLE_SECONDS = 60.0
"""For the server to notice that its clients have gone. It takes a step or two."""

MEMORY_SHARE = 0.02
"""Growth of the median memory from the second quarter of a run to the last that is not a leak.

Allocators keep freed pages, and which ones depends on the order of requests. A block of a request
kept by each of a thousand requests would be many times as much.
"""
FEWEST_SAMPLES = 8
"""Rounds whose memory tells something: two in each quarter."""

ALARM = re.compile(r"\b(ERROR|CRITICAL)\b|^Traceback|Segmentation fault")


@dataclass(frozen=True)
class Server:
    """The server under test, as this program sees it.

    Attributes:
        url: its root, without a slash at the end.
        log: the file with its output.
        memory: tells the resident bytes of its processes.
        check: raises an error if it has died.
    """

    url: str
    log: Path
    memory: Callable[[], int]
    check: Callable[[], None]


@dataclass(frozen=True)
class State:
    """Counters of a server.

    Attributes:
        running, waiting: requests right now.
        cache_usage: share of the cache's blocks that requests hold.
        preemptions, prefix_hits, tokens: since the start; hits are tokens.
        blocks, block_size: of the whole cache.
    """

    running: float
    waiting: float
    cache_usage: float
    preemptions: float
    prefix_hits: float
    tokens: float
    blocks: int
    block_size: int

    @property
    def quiet(self) -> bool:
        """Tell if no request and no block is in use."""
        return not (self.running or self.waiting or self.cache_usage)


def parse(text: str) -> State:
    """Read a ``/metrics`` page.

    Raises:
        UnansweredError: it lacks a metric.
    """
    found = read_samples(text)
    metrics = sums(found)
    cache = next((sample.labels for sample in found if sample.name == CACHE), {})
    try:
        return State(
            **{name: metrics[metric] for name, metric in METRICS.items()},
            blocks=int(cache["num_gpu_blocks"]),
            block_size=int(cache["block_size"]),
        )
    except (KeyError, ValueError) as error:
        raise UnansweredError(f"/metrics has no {error}; is this vLLM {VLLM.span}?") from error


async def state(client: Client) -> State:
    """Ask a server for its counters."""
    return parse(await client.ask("/metrics"))


async def settled(client: Client, patience: float) -> State:
    """Wait until a server has nothing to do, and return its counters then or when time is up."""
    deadline = asyncio.get_running_loop().time() + patience
    while True:
        found = await state(client)
        if found.quiet or asyncio.get_running_loop().time() > deadline:
            return found
        await asyncio.sleep(0.5)


def growth(samples: Sequence[int]) -> float | None:
    """Compare the median of the last quarter with that of the second.

    The first quarter is left out: buffers grow to their size, and caches fill.

    Args:
        samples: resident bytes of an idle server, round by round.

    Returns:
        growth as a share; None for too few samples.
    """
    quarter = len(samples) // 4
    if len(samples) < FEWEST_SAMPLES:
        return None
    early = statistics.median(samples[quarter : 2 * quarter])
    return statistics.median(samples[-quarter:]) / early - 1


def alarms(log: str) -> list[str]:
    """List the lines of a log that tell of an error. A refused request leaves none."""
    return [line for line in log.splitlines() if ALARM.search(line)]
