"""``examples/gpu_check.py`` where there is no GPU: it tries itself out, and finds what is wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.engine import ONE_THREAD, run_checked

pytestmark = pytest.mark.slow

SCRIPT = str(Path(__file__).parents[2] / "examples" / "gpu_check.py")
WITHOUT_GPU = ONE_THREAD | {"CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("check")


@pytest.fixture(scope="module")
def printed(folder):
    return run_checked(
        [
            sys.executable, SCRIPT, "--quick", "--parts", "versions,exact,engine", "--exact", "odd",
            "--models", "original,192+64", "--json", str(folder / "report.json"),
            "--logs", str(folder / "logs"),
        ],
        WITHOUT_GPU,
    )  # fmt: skip


def test_what_vllm_computes_is_what_transformers_computes(printed, folder):
    report = json.loads((folder / "report.json").read_text())
    odd = report["exact"]["odd"]
    assert odd["ok"], printed
    # Answers of several kinds were compared: from the prefix cache too.
    assert odd["cached_tokens"] > 0
    assert 0 < odd["error"] < 0.1
    tokens = {name: one["cache_tokens"] for name, one in report["engine"]["engines"].items()}
    # 2 KV heads of 32, keys and values, against 24 + 8.
    assert tokens["192+64"] == 4 * tokens["original"]
    assert "no check failed" in printed


def test_a_report_becomes_tables(printed, folder):
    shown = run_checked(
        [sys.executable, SCRIPT, "--show", str(folder / "report.json")], WITHOUT_GPU
    )
    assert "| odd | 0.0" in shown
    assert "(4.00x) |" in shown


def test_a_check_that_fails_is_told_and_the_others_go_on(folder):
    done = subprocess.run(
        [
            sys.executable, SCRIPT, "--parts", "memory", "--models", "original,192+64",
            "--engine-args", '{"block_size": -1}', "--logs", str(folder / "logs"),
        ],
        capture_output=True, text=True, env=os.environ | WITHOUT_GPU, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert "2 checks failed: memory/original, memory/192+64" in done.stdout
