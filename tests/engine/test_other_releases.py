"""The plugin in releases of vLLM that it was not made for: one line, and other models untouched."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.engine import ENGINE_ENVIRONMENT, run_checked
from tests.support.tiny import save_tiny

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parents[1] / "support" / "other_release.py"


@pytest.fixture(scope="module")
def started(tiny_checkpoint, tmp_path_factory):
    original = save_tiny(tmp_path_factory.mktemp("original"))

    def start(version):
        command = [sys.executable, str(SCRIPT), version, str(tiny_checkpoint), str(original)]
        log = run_checked(command, ENGINE_ENVIRONMENT)
        errors = [json.loads(line) for line in log.splitlines() if line.startswith(('"', "null"))]
        return (*errors, log)

    with ThreadPoolExecutor() as pool:
        return dict(zip(("0.29.1", "0.99.0"), pool.map(start, ("0.29.1", "0.99.0")), strict=True))


def test_an_older_release_refuses_converted_models_alone(started):
    converted, original, log = started["0.29.1"]
    assert "vllm 0.29.1 is older than 0.30, the oldest release" in converted
    assert 'pip install "vllm>=0.30,<0.33"' in converted
    assert original is None, log


def test_a_newer_release_serves_with_one_warning(started):
    converted, original, log = started["0.99.0"]
    assert converted is None, log
    assert original is None, log
    (line,) = [line for line in log.splitlines() if "mha2mla:" in line and "tested" in line]
    assert "vllm 0.99.0 has not been tested with vllm-mha2mla" in line
