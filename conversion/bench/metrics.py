"""Metrics of a vLLM server, read from ``/metrics``, and the memory of its processes."""

from collections.abc import Iterable
from dataclasses import dataclass

import psutil
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from conversion.bench.server import Server
from conversion.errors import ServerError
from vllm_mha2mla.versions import VLLM

RUNNING = "vllm:num_requests_running"
PREEMPTIONS = "vllm:num_preemptions_total"
TOKENS = ("vllm:prompt_tokens_total", "vllm:generation_tokens_total")


@dataclass(frozen=True)
class Metrics:
    """The state of a server's engine; of several engines, their sum.

    Attributes:
        running: requests in the batch right now.
        preemptions: requests thrown out of a full cache since the start.
        tokens: tokens read and generated since the start.
    """

    running: int
    preemptions: int
    tokens: int


def read_samples(page: str) -> list[Sample]:
    """The samples of a ``/metrics`` page."""
    return [s for family in text_string_to_metric_families(page) for s in family.samples]


def sums(found: Iterable[Sample]) -> dict[str, float]:
    """Metrics by name; of several engines, their sum."""
    added: dict[str, float] = {}
    for sample in found:
        added[sample.name] = added.get(sample.name, 0.0) + sample.value
    return added


def parse_metrics(text: str) -> Metrics:
    """Parse a ``/metrics`` page.

    Raises:
        ServerError: the page lacks a metric.
    """
    found = sums(read_samples(text))
    missing = [name for name in (RUNNING, PREEMPTIONS, *TOKENS) if name not in found]
    if missing:
        raise ServerError(f"/metrics has no {', '.join(missing)}; is this vLLM {VLLM.span}?")
    return Metrics(int(found[RUNNING]), int(found[PREEMPTIONS]), int(sum(found[n] for n in TOKENS)))


def memory_bytes(server: Server) -> int:
    """Sum the resident memory of the server's processes; shared pages count once for each."""
    total = 0
    try:
        root = psutil.Process(server.process.pid)
        processes = [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return total
    for process in processes:
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total
