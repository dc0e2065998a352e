"""A checkpoint made without ``--dtype``, served without an option, beside another program."""

import subprocess
import sys
from contextlib import contextmanager

import pytest

from conversion.pipeline import Options
from conversion.pipeline import convert as convert_here
from conversion.recipes.recipe import Recipe
from conversion.runtime.progress import Progress
from conversion.source import open_source
from tests.support.engine import run_logged
from tests.support.tiny import TEXT, save_tiny

pytestmark = pytest.mark.slow


@contextmanager
def memory_held():
    """Another process uses so much memory that vLLM's default share is not free."""
    holder = subprocess.Popen(
        [sys.executable, "-m", "tests.support.hold_memory"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    with holder:
        # Whatever vLLM logs when it is imported comes first.
        assert "held\n" in iter(holder.stdout.readline, "")
        yield


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    source = open_source(str(save_tiny(folder / "source")))
    (folder / "text.txt").write_text(TEXT)
    recipe = Recipe(calibration=[str(folder / "text.txt")], calibration_tokens=1024, window=128)
    convert_here(source, folder / "converted", recipe, Options(), Progress())
    prompt = {"prompts": [list(range(9))], "sampling": {"temperature": 0, "max_tokens": 4}}
    with memory_held():
        llm = {"model": str(folder / "converted"), "enforce_eager": True}
        return run_logged({"llm": llm, "steps": [prompt]})


def test_it_starts_where_another_program_uses_memory(started):
    result, log = started
    assert result["error"] is None, log
    assert len(result["steps"][0]["outputs"][0]["tokens"]) == 4


def test_the_log_says_how_large_the_cache_is_and_what_changes_it(started):
    _, log = started
    (line,) = [line for line in log.splitlines() if "mha2mla: KV cache of" in line]
    assert "--kv-cache-memory-bytes sets another size" in line


def test_the_log_says_that_the_layers_were_checked(started):
    _, log = started
    (line,) = [line for line in log.splitlines() if "mha2mla: the self-check" in line]
    assert "found no error" in line


def test_no_weight_is_rounded_while_it_is_loaded(started):
    result, log = started
    assert result["error"] is None, log
    assert "Attempted to load weight" not in log
