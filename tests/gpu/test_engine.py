"""Engines on a GPU: every kernel's answers, and what an engine does to a batch, by gpu_check."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "gpu_check.py"
# By the plugin's choice of kernels, by our own for every layer, and of a real conversion.
MODELS = ("layers", "layers@triton", "converted")
FEATURES = ("chunks and preemption", "n-gram drafts", "model runner V1")
TIMEOUT = 900


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("check")
    command = [
        sys.executable, str(SCRIPT), "--parts", "exact,features", "--exact", ",".join(MODELS),
        "--json", str(folder / "report.json"), "--logs", str(folder),
    ]  # fmt: skip
    # Checks that fail are in the report, each for its own test.
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, check=False)
    assert (folder / "report.json").is_file(), done.stdout + done.stderr
    return json.loads((folder / "report.json").read_text())


@pytest.mark.parametrize("model", MODELS)
def test_log_probabilities_are_those_of_transformers(report, model):
    assert report["exact"][model]["ok"], report["exact"][model]


@pytest.mark.parametrize("feature", FEATURES)
def test_what_an_engine_does_to_a_batch_changes_nothing(report, feature):
    assert report["features"][feature]["ok"], report["features"][feature]
