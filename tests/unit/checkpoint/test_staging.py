import errno
from pathlib import Path

import pytest

from conversion.checkpoint.staging import staged_folder
from conversion.errors import OutputError


def test_a_second_writer_is_kept_out(tmp_path):
    out = tmp_path / "out"
    with staged_folder(out, overwrite=False) as folder:
        (folder / "config.json").write_text("{}")
        with (
            pytest.raises(OutputError, match="another process"),
            staged_folder(out, overwrite=False),
        ):
            pass
    assert (out / "config.json").exists()
    assert list(tmp_path.iterdir()) == [out]


def test_what_a_killed_process_left_is_cleared(tmp_path):
    partial, replaced = tmp_path / ".out.partial", tmp_path / ".out.replaced"
    for left in (partial, replaced):
        left.mkdir()
        (left / "model.safetensors").write_text("half")
    with staged_folder(tmp_path / "out", overwrite=False) as folder:
        assert list(folder.iterdir()) == []
    assert [*tmp_path.iterdir()] == [tmp_path / "out"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "disk is full"),
        (PermissionError(errno.EACCES, "Permission denied"), "cannot be written"),
    ],
)
def test_a_disk_that_refuses(tmp_path, error, message):
    with (
        pytest.raises(OutputError, match=message),
        staged_folder(tmp_path / "out", overwrite=False) as folder,
    ):
        (folder / "model.safetensors").write_text("half")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_what_it_is_made_from_is_not_replaced(tmp_path, monkeypatch):
    folder = tmp_path / "models" / "llama"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder.parent / "config.json").write_text("{}")
    monkeypatch.setenv("HOME", str(tmp_path))
    with (
        pytest.raises(OutputError, match="made from"),
        staged_folder(folder.parent, True, "~/models/llama"),
    ):
        pass
    for out in (folder, folder.parent, folder / ".." / "llama"):
        with (
            pytest.raises(OutputError, match="which it is made from"),
            staged_folder(out, True, "demo:smollm2-135m", str(folder)),
        ):
            pass
    assert (folder / "config.json").exists()
    with staged_folder(tmp_path / "models" / "other", True, str(folder)):
        pass


@pytest.mark.parametrize("out", [".", "..", "../here"])
def test_the_current_folder_is_not_replaced(tmp_path, monkeypatch, out):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(OutputError, match="cannot be replaced"), staged_folder(Path(out), True):
        pass
    assert [*tmp_path.iterdir()] == [tmp_path / "here"]


def test_a_folder_that_came_meanwhile_is_not_replaced(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(OutputError, match="already exists"), staged_folder(out, False):
        out.mkdir()
        (out / "notes.txt").write_text("mine")
    assert [*tmp_path.rglob("*")] == [out, out / "notes.txt"]


def test_the_old_checkpoint_stays_when_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text("old")
    going = Path.rename

    def failing(path, target):
        if path.name.endswith(".partial"):
            raise OSError(errno.EIO, "Input/output error")
        return going(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OutputError, match="cannot be written"), staged_folder(out, True) as folder:
        (folder / "config.json").write_text("new")
    assert (out / "config.json").read_text() == "old"
    assert [*tmp_path.iterdir()] == [out]
