"""Metrics of a vLLM server, read from ``/metrics``, and the memory of its processes."""

from dataclasses import dataclass

import psutil
from prometheus_client.parser import text_string_to_metric_families

from conversion.bench.server import Server
from conversion.errors import ServerError

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


def parse_metrics(text: str) -> Metrics:
    """Parse a ``/metrics`` page.

    Raises:
        ServerError: the page lacks a metric.
    """
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name in (RUNNING, PREEMPTIONS, *TOKENS):
                sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
    missing = [name for name in (RUNNING, PREEMPTIONS, *TOKENS) if name not in sums]
    if missing:
        raise ServerError(f"/metrics has no {', '.join(missing)}; is this vLLM 0.32?")
    return Metrics(int(sums[RUNNING]), int(sums[PREEMPTIONS]), int(sum(sums[n] for n in TOKENS)))


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
