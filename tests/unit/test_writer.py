import errno

import pytest

from conversion.errors import OutputError
from conversion.writer import staged_folder


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
    partial = tmp_path / ".out.partial"
    partial.mkdir()
    (partial / "model.safetensors").write_text("half")
    with staged_folder(tmp_path / "out", overwrite=False) as folder:
        assert list(folder.iterdir()) == []


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
