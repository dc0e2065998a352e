"""Training checkpoints of an interrupted healing: which one is resumed, and what is refused."""

import errno
import json
from pathlib import Path

import pytest

from conversion.errors import OutputError, TrainingError
from conversion.healing.resume import TrainingCheckpoints


def save(checkpoints, step, whole=True):
    folder = checkpoints.folder / f"checkpoint-{step}"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    state = json.dumps({"global_step": step})
    (folder / "trainer_state.json").write_text(state if whole else state[:5])
    return folder


def test_it_resumes_from_the_last_complete_checkpoint(tmp_path):
    checkpoints = TrainingCheckpoints(tmp_path / "out")
    with checkpoints.claimed({"text": "a"}, restart=False):
        assert checkpoints.last() is None
        save(checkpoints, 9)
        expected = save(checkpoints, 100)
        torn = save(checkpoints, 200, whole=False)
        bare = checkpoints.folder / "checkpoint-300"
        bare.mkdir()
    with checkpoints.claimed({"text": "a"}, restart=False):
        assert checkpoints.last() == expected
        assert not torn.exists()
        assert not bare.exists()


def test_another_run_is_refused_by_what_differs_and_dropped_when_told(tmp_path):
    checkpoints = TrainingCheckpoints(tmp_path / "out")
    with checkpoints.claimed({"text": "a", "teacher": "t"}, restart=False):
        save(checkpoints, 5)
    with (
        pytest.raises(TrainingError, match=r"with another text;.*--restart"),
        checkpoints.claimed({"text": "b", "teacher": "t"}, restart=False),
    ):
        pass
    with checkpoints.claimed({"text": "b", "teacher": "t"}, restart=True):
        assert checkpoints.last() is None


def test_two_at_once_are_refused(tmp_path):
    checkpoints = TrainingCheckpoints(tmp_path / "out")
    with (
        checkpoints.claimed({}, restart=False),
        pytest.raises(OutputError, match="another process is writing it"),
        TrainingCheckpoints(tmp_path / "out").claimed({}, restart=False),
    ):
        pass


def test_failing_before_anything_was_saved_leaves_nothing(tmp_path):
    checkpoints = TrainingCheckpoints(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt), checkpoints.claimed({}, restart=False):
        raise KeyboardInterrupt
    assert not checkpoints.folder.exists()
    with pytest.raises(KeyboardInterrupt), checkpoints.claimed({}, restart=False):
        save(checkpoints, 5)
        raise KeyboardInterrupt
    assert checkpoints.last() is not None


def test_figures_before_training_are_kept(tmp_path):
    checkpoints = TrainingCheckpoints(tmp_path / "out")
    with checkpoints.claimed({"text": "a"}, restart=False):
        assert checkpoints.before is None
        checkpoints.record_before({"perplexity": 3.0})
        save(checkpoints, 5)
    with checkpoints.claimed({"text": "a"}, restart=False):
        assert checkpoints.before == {"perplexity": 3.0}


def test_every_rate_is_kept_with_the_step_it_began_at(tmp_path):
    checkpoints = TrainingCheckpoints(tmp_path / "out")
    with checkpoints.claimed({"text": "a"}, restart=False):
        for rate, saved in ((1e-3, 4), (1e-3, 8), (1e-4, 12), (1e-5, None)):
            checkpoints.record_rate(rate)
            if saved is not None:
                save(checkpoints, saved)
        assert checkpoints.rates == {0: 1e-3, 8: 1e-4, 12: 1e-5}
        # Nothing was trained with the last: another takes its place, or the one before goes on.
        checkpoints.record_rate(1e-6)
        assert checkpoints.rates == {0: 1e-3, 8: 1e-4, 12: 1e-6}
        checkpoints.record_rate(1e-4)
        assert checkpoints.rates == {0: 1e-3, 8: 1e-4}


def test_a_disk_that_is_full_at_the_start(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    checkpoints = TrainingCheckpoints(tmp_path / "out")
    with (
        pytest.raises(OutputError, match=r"No space left on device\); free some space"),
        checkpoints.claimed({}, restart=False),
    ):
        pass
    assert not checkpoints.folder.exists()
