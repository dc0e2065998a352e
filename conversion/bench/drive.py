"""Drives a server with ``vllm bench serve`` and watches it meanwhile."""

import contextlib
import json
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conversion.bench.loads import Load
from conversion.bench.metrics import Metrics, memory_bytes, parse_metrics
from conversion.bench.results import Figures
from conversion.bench.server import Server, failure, running, vllm_command

# Not more often: reading /metrics takes the server some milliseconds.
POLL_SECONDS = 0.25
# Longer than any step: a prompt counts as read only when all its chunks are.
STALL_SECONDS = 900.0
DYING_SECONDS = 5.0


def drive(server: Server, model: Path, load: Load, scratch: Path) -> Figures:
    """Put a load on a server and measure it.

    Args:
        server: an idle server.
        model: the folder it serves, for the tokenizer.
        load: the requests to send.
        scratch: folder for the benchmark's log and result.

    Raises:
        ServerError: the server died or stalled, requests failed, or the benchmark did.
    """
    log, result = scratch / "bench.log", scratch / "result.json"
    result.unlink(missing_ok=True)
    before = _metrics(server)
    with running(_command(server, model, load, result), log) as bench:
        observed = _watch(server, bench, before)
    reported = _result(server, load, bench.returncode, log, result)
    return Figures(
        cache_tokens=server.cache_tokens,
        max_running=observed.max_running,
        request_throughput=reported["request_throughput"],
        output_throughput=reported["output_throughput"],
        ttft_ms=reported["median_ttft_ms"],
        tpot_ms=reported["median_tpot_ms"],
        preemptions=_metrics(server).preemptions - before.preemptions,
        peak_memory_bytes=observed.peak_memory,
    )


@dataclass
class _Observed:
    """The maxima seen while a server was driven."""

    max_running: int
    peak_memory: int


def _command(server: Server, model: Path, load: Load, result: Path) -> list[str]:
    options = {
        "base-url": server.url,
        "model": str(model),
        "dataset-name": "random",
        "random-input-len": str(load.input_len),
        "random-output-len": str(load.output_len),
        "random-range-ratio": "0",
        "num-prompts": str(load.num_prompts),
        "max-concurrency": str(load.max_concurrency),
        "seed": str(load.seed),
        "temperature": "0",
        "result-dir": str(result.parent),
        "result-filename": result.name,
    }
    flags = ["--ignore-eos", "--save-result", "--disable-tqdm"]
    pairs = [part for key, value in options.items() for part in (f"--{key}", value)]
    return [*vllm_command(), "bench", "serve", *pairs, *flags]


def _result(server: Server, load: Load, code: int | None, log: Path, result: Path) -> Any:
    reported = json.loads(result.read_text("utf-8")) if code == 0 else {}
    if reported.get("completed") == load.num_prompts:
        return reported
    _check_dying(server)
    if code != 0:
        raise failure(f"vllm bench serve ended with code {code}", log)
    raise server.error(f"{reported['completed']} of {load.num_prompts} requests were answered")


def _watch(server: Server, bench: subprocess.Popen[bytes], before: Metrics) -> _Observed:
    observed = _Observed(before.running, memory_bytes(server))
    tokens, last_progress = before.tokens, time.monotonic()
    while bench.poll() is None:
        server.check()
        now = _metrics(server, patience=STALL_SECONDS)
        observed.max_running = max(observed.max_running, now.running)
        observed.peak_memory = max(observed.peak_memory, memory_bytes(server))
        if now.tokens != tokens:
            tokens, last_progress = now.tokens, time.monotonic()
        elif time.monotonic() - last_progress > STALL_SECONDS:
            raise server.error(f"no token for {STALL_SECONDS:.0f} s")
        time.sleep(POLL_SECONDS)
    return observed


def _metrics(server: Server, patience: float = 60.0) -> Metrics:
    try:
        return parse_metrics(server.read("/metrics", patience))
    except OSError as error:
        _check_dying(server)
        raise server.error(f"/metrics does not answer ({error})") from error


def _check_dying(server: Server) -> None:
    # A dying server refuses connections before it has ended.
    with contextlib.suppress(subprocess.TimeoutExpired):
        server.process.wait(DYING_SECONDS)
    server.check()
