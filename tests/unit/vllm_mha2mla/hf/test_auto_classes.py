"""Loading a checkpoint with transformers and what builds on it, package imported or not."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from tests.support.tiny_converted import save_tiny_coded, save_tiny_converted
from vllm_mha2mla.errors import CheckpointError
from vllm_mha2mla.hf.auto_classes import MODULE
from vllm_mha2mla.hf.llama import LlamaMLAConfig, LlamaMLAForCausalLM

LOAD = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, again = sys.argv[1:]
try:
    AutoModelForCausalLM.from_pretrained(folder)
except ValueError as error:
    print("refused:", error)
assert "vllm_mha2mla" not in sys.modules
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
print("loaded:", type(model).__module__)
AutoTokenizer.from_pretrained(folder)
model.save_pretrained(again)
"""
HARNESS = """
import sys
from lm_eval.models.huggingface import HFLM

folder, _ = sys.argv[1:]
try:
    HFLM(pretrained=folder, device="cpu")
except ValueError as error:
    print("refused:", error)
print("loaded:", type(HFLM(pretrained=folder, device="cpu", trust_remote_code=True).model))
"""
# As if it were not installed.
MISSING = """
import sys
from importlib.abc import MetaPathFinder
from transformers import AutoConfig

class Missing(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] == "vllm_mha2mla":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
folder, _ = sys.argv[1:]
try:
    AutoConfig.from_pretrained(folder, trust_remote_code=True)
except ImportError as error:
    print("refused:", error)
"""
ASKS_FOR_TRUST = "Please pass the argument `trust_remote_code=True`"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny_converted(tmp_path_factory.mktemp("converted"))


@pytest.fixture
def elsewhere(folder, tmp_path):
    """Run a script in a process that has not imported the package; its output."""

    def run(script):
        done = subprocess.run(
            [sys.executable, "-c", script, str(folder), str(tmp_path / "again")],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
            env=os.environ | {"HF_MODULES_CACHE": str(tmp_path), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_transformers_asks_for_trust_and_then_finds_the_package(elsewhere, folder, tmp_path):
    said = elsewhere(LOAD)
    assert f"refused: The repository {folder} contains custom code" in said
    assert ASKS_FOR_TRUST in said
    assert "loaded: vllm_mha2mla.hf.llama" in said
    # Saved by transformers, it can be found again.
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config["auto_map"] == {
        "AutoConfig": f"{MODULE}.LlamaMLAConfig",
        "AutoModelForCausalLM": f"{MODULE}.LlamaMLAForCausalLM",
    }
    sources = sorted(path.name for path in (tmp_path / "again").glob("*.py"))
    assert sources == [f"{MODULE}.py"]
    module = f"{MODULE}.py"
    assert (tmp_path / "again" / module).read_text() == (folder / module).read_text()


@pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm_eval is not installed")
def test_the_evaluation_harness(elsewhere):
    said = elsewhere(HARNESS)
    assert ASKS_FOR_TRUST in said
    assert "loaded: <class 'vllm_mha2mla.hf.llama.LlamaMLAForCausalLM'>" in said


def test_without_the_package_its_name_is_said(elsewhere):
    assert "pip install vllm_mha2mla" in elsewhere(MISSING)


@pytest.mark.parametrize("trust", [None, True])
def test_nothing_of_the_checkpoint_runs_where_the_package_is_imported(tmp_path, trust):
    folder = save_tiny_converted(tmp_path / "converted")
    (folder / f"{MODULE}.py").write_text("raise SystemExit('the checkpoint ran')\n")
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=trust)
    assert type(config) is LlamaMLAConfig
    assert type(model) is LlamaMLAForCausalLM


def test_layers_that_the_widths_do_not_know_are_not_made(tmp_path, monkeypatch):
    """A damaged config may promise as many as no memory holds."""
    folder = save_tiny_coded(tmp_path / "converted")
    config = json.loads((folder / "config.json").read_text("utf-8"))
    config["num_hidden_layers"] += 1
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    made = []
    monkeypatch.setattr(LlamaDecoderLayer, "__init__", lambda self, *_: made.append(self))
    with pytest.raises(CheckpointError, match="entries for"):
        AutoModelForCausalLM.from_pretrained(folder)
    assert not made
