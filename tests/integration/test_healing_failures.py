"""``mha2mla heal`` where it cannot start or go on: one line, exit code 2, no checkpoint."""

import json
import resource
import signal
import subprocess
import sys

import pytest

from conversion.healing import memory
from tests.integration.test_conversion import run as convert
from tests.integration.test_healing import environment
from tests.tiny import TEXT, save_tiny, tiny_tokenizer


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    convert(save_tiny(folder / "source"), folder / "converted", cache_fraction=0.5, refit=False)
    (folder / "text.txt").write_text(TEXT)
    return folder


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
        assert result.returncode == 2, result.stderr
        assert sorted(tmp_path.iterdir()) == before
        line = result.stderr.strip().splitlines()[-1]
        assert line.startswith("error: ")
        assert "Traceback" not in result.stderr
        return line

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
        ("objective: distil\n", "--objective"),
        ("learning_rate: 1\n", "--learning-rate"),
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


def test_too_little_memory(monkeypatch, refused):
    monkeypatch.setattr(memory, "available_bytes", lambda: 1000)
    assert "GiB are free; lower window or batch_size" in refused()


def test_numbers_that_run_away_keep_the_last_good_state(mha2mla, models, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    # No warm-up, no decay: the first steps are as long as they get.
    recipe.write_text("save_steps: 1\nwarmup: 0\ndecay: 0\n")
    result = mha2mla(*arguments(models, tmp_path / "out", "--recipe", recipe, "--lr", 1e30))
    assert result.returncode == 2, result.stderr
    line = result.stderr.strip().splitlines()[-1]
    assert "is NaN or infinite" in line
    assert "--restart" in line
    assert not (tmp_path / "out").exists()
    kept = tmp_path / ".out.healing"
    assert str(kept) in line
    # The other recipe is refused until told to drop it.
    again = arguments(models, tmp_path / "out", "--recipe", recipe)
    result = mha2mla(*again)
    assert result.returncode == 2
    assert "with another recipe" in result.stderr
    assert mha2mla(*again, "--restart").returncode == 0
    assert (tmp_path / "out" / "config.json").exists()
    assert not kept.exists()


def test_a_disk_that_fills_up(models, tmp_path):
    # A limit on the size of a file stands in for a full disk: the same write fails.
    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("save_steps: 5\n")
    command = [sys.executable, "-m", "conversion.cli"]
    command += map(str, arguments(models, tmp_path / "out", "--recipe", recipe))
    result = subprocess.run(
        command, capture_output=True, text=True, env=environment(), preexec_fn=limit
    )
    assert result.returncode == 2, result.stderr
    assert "a state cannot be saved" in result.stderr.strip().splitlines()[-1]
    assert not (tmp_path / "out").exists()


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
