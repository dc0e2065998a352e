"""``mha2mla bench`` as a user runs it: two servers, vLLM's own benchmark, figures."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.support.bench import KEYS
from tests.support.engine import DEMO, ONE_THREAD
from tests.support.tiny import save_tiny
from tests.support.tiny_converted import save_tiny_converted

pytestmark = pytest.mark.slow

TIMEOUT = 500
CACHE_BYTES = 16 << 20


def bench(scratch, *arguments):
    command = [str(Path(sys.executable).with_name("mha2mla")), "bench", *map(str, arguments)]
    settings = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "TMPDIR": str(scratch)}
    environment = os.environ | ONE_THREAD | settings
    return subprocess.run(
        command, capture_output=True, text=True, timeout=TIMEOUT, env=environment, check=False
    )


@pytest.fixture
def scratch():
    # vLLM's sockets lie in it, whose paths may have 107 characters; a test's own folder has most.
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        yield Path(folder)


def test_original_and_converted_side_by_side(half_cache, tmp_path, scratch):
    done = bench(
        scratch, half_cache, "--baseline", DEMO, "--kv-memory", "16MiB", "--input-len", 32,
        "--output-len", 16, "--max-concurrency", 4, "--num-prompts", 4, "--rounds", 1,
        "--args", "--enforce-eager",
        "--json", tmp_path / "figures.json", "--plot", tmp_path / "plot.png",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "figures.json").read_text())
    for block in ("original", "converted", "ratios"):
        assert set(found[block]) == KEYS
    original, converted, ratios = (found[name] for name in ("original", "converted", "ratios"))
    # 3 KV heads of 64, keys and values, in bfloat16, in 30 layers; blocks of 128 tokens.
    assert original["cache_tokens"] == CACHE_BYTES // (2 * 3 * 64 * 2 * 30) // 128 * 128
    # Whole blocks: 5 of the original's fit, and 11 of the other's, half the size.
    assert ratios["cache_tokens"] == 11 / 5
    for one in (original, converted):
        assert one["preemptions"] == 0
        assert 1 <= one["max_running"] <= 4
        # 16 tokens a request.
        assert one["output_throughput"] == 16 * one["request_throughput"]
        # Imports alone take some hundred MiB in each of a server's processes.
        assert 1 << 29 < one["peak_memory_bytes"] < 1 << 34
    for key in ("output_throughput", "ttft_ms", "tpot_ms"):
        assert converted[key] > 0
        assert ratios[key] == converted[key] / original[key]
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
    assert "tokens in the cache" in done.stdout
    assert not list(scratch.glob("mha2mla-bench-*"))


def test_a_server_that_dies_is_an_error_with_the_end_of_its_log(tmp_path, scratch):
    source = save_tiny(tmp_path / "source")
    converted = save_tiny_converted(tmp_path / "converted")
    (source / "tokenizer.json").write_text("{}")
    done = bench(scratch, converted, "--baseline", source, "--input-len", 32, "--output-len", 16)
    assert done.returncode == 2
    *tail, error = done.stderr.splitlines()
    assert error.startswith("error: vllm serve ended with code 1")
    # What vLLM itself said.
    assert any("tokenizer" in line for line in tail), done.stderr
    (log,) = scratch.glob("mha2mla-bench-*/original.log")
    assert str(log) in error
