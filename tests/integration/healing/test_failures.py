"""``mha2mla heal`` where it cannot start or go on: one line, exit code 2, no checkpoint."""

import csv
import json
import shutil
from importlib.util import find_spec

import pytest
import torch

from conversion.healing import memory_estimate as memory
from conversion.healing.recipe import HealingRecipe
from conversion.healing.trainer import HealingTrainer
from tests.support.healing import interrupt_at
from tests.support.processes import full_disk, one_line
from tests.support.tiny import TEXT, save_tiny, tiny_tokenizer


@pytest.fixture
def models(good_models):
    return good_models


def arguments(models, out, *more):
    return [
        *("heal", models / "converted", out, "--teacher", models / "source"),
        *("--text", models / "text.txt", "--tokens", 640, "--window", 64, *more),
    ]


@pytest.fixture
def refused(mha2mla, models, tmp_path):
    """A healing that must fail; its one line."""

    def run(*more):
        before = sorted(tmp_path.iterdir())
        result = mha2mla(*arguments(models, tmp_path / "out", *more))
        return one_line(tmp_path, before, result)

    return run


def test_a_checkpoint_that_is_not_converted(mha2mla, models, tmp_path):
    command = arguments(models, tmp_path / "out")
    command[1] = models / "source"
    result = mha2mla(*command)
    assert result.returncode == 2
    assert "not a converted one" in result.stderr


def test_a_teacher_with_another_vocabulary(tmp_path, refused):
    other = save_tiny(tmp_path / "larger", vocab_size=300)
    assert "its vocabulary is not the checkpoint's" in refused("--teacher", other)
    same_size = save_tiny(tmp_path / "other")
    tokenizer = json.loads((same_size / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["A"], vocabulary["B"] = vocabulary["B"], vocabulary["A"]
    (same_size / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert "its vocabulary is not the checkpoint's" in refused("--teacher", same_size)


def test_hidden_states_of_another_shape(tmp_path, refused):
    other = save_tiny(tmp_path / "deeper", num_hidden_layers=3)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("hidden_weight: 1\n")
    line = refused("--teacher", other, "--recipe", recipe)
    assert "hidden states have another shape" in line


def test_unreadable_text(tmp_path, refused):
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"\xff\xfe\x00")
    assert "bad.txt: not UTF-8" in refused("--text", bad)
    lines = tmp_path / "bad.jsonl"
    lines.write_text('{"text": "fine"}\n{"other": 1}\n')
    assert "bad.jsonl: line 2" in refused("--text", lines)
    assert "cannot be read" in refused("--text", tmp_path / "missing.txt")


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("objective: distil\n", "recipe.yaml: objective"),
        ("learning_rate: 1\n", "recipe.yaml: learning_rate"),
        ("warmup: 0.7\ndecay: 0.5\n", "at most 1 together"),
        ("- distill\n", "not a YAML mapping"),
    ],
)
def test_recipes(tmp_path, refused, recipe, message):
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe)
    assert message in refused("--recipe", file)


def test_hidden_states_are_not_stored(tmp_path, refused):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("hidden_weight: 1\n")
    line = refused("--recipe", recipe, "--cache-teacher", tmp_path / "cache")
    assert "hidden states are not stored" in line


@pytest.mark.parametrize("option", ["--cache-teacher", "--tensorboard"])
def test_folders_in_the_way_of_the_output(tmp_path, refused, option):
    line = refused(option, tmp_path / "out" / "folder")
    assert "appears when it is whole; choose another folder" in line


@pytest.mark.parametrize("name", ["source", "converted"])
def test_what_it_is_made_from_is_not_replaced(models, name, mha2mla):
    weights = models / name / "model.safetensors"
    before = weights.read_bytes()
    result = mha2mla(*arguments(models, models / name, "--overwrite"))
    assert result.returncode == 2
    assert "which it is made from" in result.stderr
    assert weights.read_bytes() == before


def test_too_little_memory(monkeypatch, refused):
    monkeypatch.setattr(memory, "available_bytes", lambda device: 1000)
    assert "GiB are free; lower window or batch_size" in refused()


def runs_out(*args, **kwargs):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")


def test_memory_that_runs_out(refused, monkeypatch):
    monkeypatch.setattr(HealingTrainer, "compute_loss", runs_out)
    line = refused()
    assert "memory ran out (CUDA out of memory" in line
    assert "lower window or batch_size" in line


def test_memory_that_runs_out_on_the_way_back_leaves_the_checkpoint(
    mha2mla, models, tmp_path, monkeypatch
):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("save_steps: 2\n")
    asked = arguments(models, tmp_path / "out", "--recipe", recipe)
    interrupt_at(3, monkeypatch)
    assert mha2mla(*asked).returncode == 130
    with monkeypatch.context() as patched:
        patched.setattr(HealingTrainer, "_load_optimizer_and_scheduler", runs_out)
        result = mha2mla(*asked)
    assert result.returncode == 2
    line = result.stderr.strip().splitlines()[-1]
    assert "memory ran out" in line
    assert "cannot be read" not in line
    assert (tmp_path / ".out.healing" / "checkpoint-2" / "model.safetensors").exists()


def test_numbers_that_run_away_keep_the_last_checkpoint(mha2mla, models, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("save_steps: 1\nwarmup: 1\ndecay: 0\n")
    # The first step of a warm-up has no length, the second is far too long.
    asked = arguments(models, tmp_path / "out", "--recipe", recipe)
    result = mha2mla(*asked, "--lr", 1e38)
    assert result.returncode == 2, result.stderr
    line = result.stderr.strip().splitlines()[-1]
    assert "loss or gradients are NaN or infinite" in line
    assert not (tmp_path / "out").exists()
    kept = tmp_path / ".out.healing"
    assert str(kept) in line
    last = max(int(path.name.rpartition("-")[2]) for path in kept.glob("checkpoint-*"))
    assert f"the training checkpoint of step {last} is kept" in line
    # The numbers are lost: it begins again, with the options that the message names.
    assert mha2mla(*asked, "--restart", "--lr", 1e-3).returncode == 0
    assert (tmp_path / "out" / "config.json").exists()
    assert not kept.exists()


def test_interrupted_it_says_how_to_go_on(mha2mla, models, tmp_path, monkeypatch, caplog):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("save_steps: 2\n")
    asked = arguments(models, tmp_path / "out", "--recipe", recipe)
    interrupt_at(5, monkeypatch)
    with caplog.at_level("INFO"):
        assert mha2mla(*asked).returncode == 130
    assert "the same command goes on from step 4" in caplog.text
    kept = tmp_path / ".out.healing"
    assert not (tmp_path / "out").exists()
    # Not with another text; with another rate, as after numbers that ran away.
    (tmp_path / "other.txt").write_text(TEXT[:5000])
    result = mha2mla(*asked, "--text", tmp_path / "other.txt")
    assert result.returncode == 2
    assert "an interrupted healing with another text" in result.stderr
    # A damaged state is named.
    weights = kept / "checkpoint-4" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:1000])
    result = mha2mla(*asked)
    assert result.returncode == 2
    assert "checkpoint-4: cannot be read" in result.stderr
    weights.write_bytes(whole)
    assert mha2mla(*asked, "--lr", 1e-9).returncode == 0
    with (tmp_path / "out" / "healing.csv").open(newline="") as file:
        rates = [float(row["learning_rate"]) for row in csv.DictReader(file)]
    assert len(rates) == 10
    assert min(rates[:4]) > 1e-6
    assert max(rates[4:]) <= 1e-9
    # The rate of every step is in the provenance, not only that of the last command.
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    (healing,) = config["mha2mla"]["healing"]
    assert healing["rates"] == {"0": HealingRecipe().lr, "4": 1e-9}
    assert "from step 0 on, 1e-09 from step 4 on" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("limit", [50_000, 300_000])
def test_a_disk_that_fills_up(models, tmp_path, limit, mha2mla):
    # The smaller limit is reached by the weights, the larger one by Adam's moments.
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("save_steps: 5\ntrain: all\n")
    with full_disk(limit):
        result = mha2mla(*arguments(models, tmp_path / "out", "--recipe", recipe))
    assert result.returncode == 2, result.stderr
    assert "a training checkpoint cannot be saved" in result.stderr.strip().splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_messages_that_do_not_fit_the_template(tmp_path, models, mha2mla):
    for name in ("source", "converted"):
        shutil.copytree(models / name, tmp_path / name)
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = "{{ raise_exception('only one message') }}"
        tokenizer.save_pretrained(tmp_path / name)
    (tmp_path / "text.txt").write_text("")
    chat = tmp_path / "chat.jsonl"
    chat.write_text('{"messages": [{"role": "user", "content": "hi"}]}\n')
    asked = arguments(tmp_path, tmp_path / "out")
    asked[asked.index("--text") + 1] = chat
    result = mha2mla(*asked)
    assert result.returncode == 2
    assert "chat.jsonl: line 1: messages do not fit" in result.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--objective", "lm", "--cache-teacher", "cache"), "uses no teacher"),
        (("--window", 1024), "the models take 512 tokens"),
        (("--window", 2), "stride must be less than window"),
        (("--lr", -1), "error: --lr"),
    ],
)
def test_options(refused, options, message):
    assert message in refused(*options)


def test_how_it_was_launched(refused, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    assert "error: accelerate launch: DeepSpeed is not supported" in refused()


@pytest.mark.skipif(find_spec("tensorboard") is not None, reason="tensorboard is installed")
def test_tensorboard_has_to_be_there(refused, tmp_path):
    assert "pip install tensorboard" in refused("--tensorboard", tmp_path / "log")


def test_ids_beyond_the_vocabulary(models, tmp_path, mha2mla):
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["Rotary"])
    for name in ("source", "converted"):
        copied = tmp_path / name
        copied.mkdir()
        for file in (models / name).iterdir():
            (copied / file.name).write_bytes(file.read_bytes())
        tokenizer.save_pretrained(copied)
    (tmp_path / "text.txt").write_text(TEXT)
    result = mha2mla(*arguments(tmp_path, tmp_path / "out"))
    assert result.returncode == 2
    assert "ids beyond the vocabulary" in result.stderr
