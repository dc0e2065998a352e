"""An engine whose kernel is broken does not start, unless its user turns the self-check off."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from conversion.bench.server import free_port
from tests.support.engine import ENGINE_ENVIRONMENT, LOG_TAIL, RUN_TIMEOUT, refusals
from tests.support.tiny_engine import tiny_engine

pytestmark = pytest.mark.slow

# A plugin of vLLM's, so that the fault is in every process of the engine.
FAULT = """
def register():
    from vllm_mha2mla.kernels.cpu import CpuLayer

    sound = CpuLayer.__init__

    def broken(self, kernel, cache, w_uk, w_uv, inv_freq, scale, coded):
        sound(self, kernel, cache, w_uk, w_uv, inv_freq, 1.5 * scale, coded)

    CpuLayer.__init__ = broken
"""


@pytest.fixture(scope="module")
def python_path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fault")
    info = folder / "broken_kernel-1.0.dist-info"
    info.mkdir()
    (folder / "broken_kernel.py").write_text(FAULT)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-kernel\nVersion: 1.0\n")
    plugin = "[vllm.general_plugins]\nbroken_kernel = broken_kernel:register\n"
    (info / "entry_points.txt").write_text(plugin)
    return os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])


def test_the_server_stops_with_a_report(tiny_checkpoint, python_path):
    command = [
        str(Path(sys.executable).with_name("vllm")),
        *("serve", str(tiny_checkpoint), "--enforce-eager", "--skip-tokenizer-init"),
        *("--max-model-len", "256", "--kv-cache-memory-bytes", str(1 << 24)),
        *("--host", "127.0.0.1", "--port", str(free_port())),
    ]
    usual = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "PYTHONPATH": python_path}
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=RUN_TIMEOUT,
        env=os.environ | ENGINE_ENVIRONMENT | usual,
        check=False,
    )
    assert done.returncode != 0
    reports = [line for line in done.stdout.splitlines() if "SelfCheckError: self-check: " in line]
    assert reports, done.stdout[-LOG_TAIL:]
    assert "model.layers.0.self_attn.attn computes wrong results: the output of" in reports[0]
    for part in ("the CPU kernel for", "vllm-mha2mla 0.", "VLLM_MHA2MLA_SELF_CHECK=0"):
        assert part in reports[0]


def test_it_starts_with_the_check_turned_off(tiny_checkpoint, python_path):
    off = {"VLLM_MHA2MLA_SELF_CHECK": "0", "PYTHONPATH": python_path}
    specification = {"llm": tiny_engine(tiny_checkpoint, [], 16)["llm"]}
    assert refusals(specification, **off) == ["the engine started"]
