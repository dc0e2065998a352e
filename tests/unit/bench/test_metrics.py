"""Reading vLLM's metrics and log."""

import subprocess

import pytest

pytest.importorskip("prometheus_client")

from conversion.bench.metrics import parse_metrics
from conversion.bench.server import Server
from conversion.errors import ServerError
from tests.support.bench import METRICS

LOG = """\
(Worker pid=11) INFO 11-24 15:00:03 [default_loader.py:501] Loading weights took 0.80 seconds
(EngineCore pid=7) INFO 11-24 15:00:04 [kv_cache_utils.py:2327] CPU KV cache size: 2,816 tokens, \
Maximum concurrency for 2,048 tokens per request: 1.38x
"""


def test_metrics_of_a_real_server():
    found = parse_metrics(METRICS)
    assert (found.running, found.preemptions, found.tokens) == (4, 3, 317)


def test_metrics_add_up_over_engines():
    second = METRICS.replace('engine="0"', 'engine="1"')
    samples = [line for line in second.splitlines() if not line.startswith("#")]
    assert parse_metrics(METRICS + "\n".join(samples) + "\n").running == 8


def test_metrics_of_something_else_are_refused():
    without = METRICS.replace("num_preemptions_total", "preempted_total")
    with pytest.raises(ServerError, match="vllm:num_preemptions_total"):
        parse_metrics(without)


def test_cache_tokens_come_from_the_log(tmp_path):
    log = tmp_path / "log"
    with subprocess.Popen(["true"]) as process:
        server = Server("http://127.0.0.1:1", log, process)
        log.write_text(LOG)
        assert server.cache_tokens == 2816
        log.write_text(LOG.replace("KV cache size", "KV size"))
        with pytest.raises(ServerError, match="KV cache size"):
            _ = server.cache_tokens
