"""``mha2mla heal`` that ends worse than it began: what it writes, records and says."""

import json
import subprocess

import pytest
import torch
from safetensors.torch import load_file

from tests.support.healing import arguments, in_shards, in_two_processes, interrupt_at
from tests.support.processes import environment

# So large that weights are lost, and so few steps that they are not found again.
TOO_LARGE = ("--lr", 0.3)
TOKENS = 512


@pytest.fixture
def models(good_models):
    return good_models


def recorded(out):
    (healing,) = json.loads((out / "config.json").read_text())["mha2mla"]["healing"]
    assert healing["after"]["divergence"] > healing["before"]["divergence"]
    return healing


def same_weights(models, out):
    """Return True if a checkpoint's weights are the converted ones, bit for bit."""
    old, new = (load_file(folder / "model.safetensors") for folder in (models / "converted", out))
    assert old.keys() == new.keys()
    return all(torch.equal(tensor, new[name]) for name, tensor in old.items())


@pytest.mark.parametrize("options", [(), ("--train", "all")], ids=["attention", "all"])
def test_the_start_is_kept_and_the_last_line_says_so(models, tmp_path, mha2mla, caplog, options):
    out = tmp_path / "out"
    with caplog.at_level("INFO"):
        asked = arguments(models, out, *TOO_LARGE, *options, tokens=TOKENS)
        assert mha2mla(*asked).returncode == 0
    healing = recorded(out)
    assert healing["kept"] == "start"
    assert same_weights(models, out)
    last = caplog.records[-1].getMessage()
    before, after = (healing[when]["divergence"] for when in ("before", "after"))
    assert f"worse than before: divergence on held-out text {before:.4f} to {after:.4f}" in last
    assert f"{out} has the weights from before the training" in last
    assert "--lr" in last
    assert "--keep end" in last
    assert "These are the weights from before this training" in (out / "README.md").read_text()
    assert not (tmp_path / ".out.healing").exists()
    # A checkpoint with these weights has learned nothing.
    shown = json.loads(mha2mla("inspect", out, "--json").stdout)
    assert shown["healed_tokens"] == 0


def test_the_end_is_written_where_it_is_asked_for(models, tmp_path, mha2mla, caplog):
    out = tmp_path / "out"
    with caplog.at_level("INFO"):
        asked = arguments(models, out, *TOO_LARGE, "--keep", "end", tokens=TOKENS)
        assert mha2mla(*asked).returncode == 0
    assert recorded(out)["kept"] == "end"
    assert not same_weights(models, out)
    assert "worse than before" in caplog.records[-1].getMessage()
    assert "before this training" not in (out / "README.md").read_text()


def test_an_interrupted_healing_still_knows_its_start(models, tmp_path, mha2mla, monkeypatch):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("save_steps: 2\n")
    more = (*TOO_LARGE, "--recipe", recipe)
    assert mha2mla(*arguments(models, tmp_path / "whole", *more, tokens=TOKENS)).returncode == 0
    out = tmp_path / "out"
    interrupt_at(5, monkeypatch)
    assert mha2mla(*arguments(models, out, *more, tokens=TOKENS)).returncode == 130
    # What is kept is decided at the end: it may still be changed.
    more = (*more, "--keep", "better")
    assert mha2mla(*arguments(models, out, *more, tokens=TOKENS)).returncode == 0
    assert recorded(out) == recorded(tmp_path / "whole")
    assert same_weights(models, out)


@pytest.mark.slow
@pytest.mark.parametrize("launched", [in_two_processes, in_shards], ids=["parallel", "sharded"])
def test_several_processes_keep_the_start(models, tmp_path, launched):
    out = tmp_path / "out"
    command = launched(models, out, *TOO_LARGE, "--train", "all")
    done = subprocess.run(command, capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    assert recorded(out)["kept"] == "start"
    assert same_weights(models, out)
    assert done.stderr.count("worse than before") == 1
