"""States of an interrupted healing: what is gone on from, and what is refused."""

import errno
import json
from pathlib import Path

import pytest

from conversion.errors import HealingError, OutputError
from conversion.healing.resume import States


def save(states, step, whole=True):
    folder = states.folder / f"checkpoint-{step}"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    state = json.dumps({"global_step": step})
    (folder / "trainer_state.json").write_text(state if whole else state[:5])
    return folder


def test_goes_on_from_the_last_whole_state(tmp_path):
    states = States(tmp_path / "out")
    with states.claimed({"text": "a"}, restart=False):
        assert states.last() is None
        save(states, 9)
        expected = save(states, 100)
        torn = save(states, 200, whole=False)
        bare = states.folder / "checkpoint-300"
        bare.mkdir()
    with states.claimed({"text": "a"}, restart=False):
        assert states.last() == expected
        assert not torn.exists()
        assert not bare.exists()


def test_another_run_is_refused_by_what_differs_and_dropped_when_told(tmp_path):
    states = States(tmp_path / "out")
    with states.claimed({"text": "a", "teacher": "t"}, restart=False):
        save(states, 5)
    with (
        pytest.raises(HealingError, match=r"with another text;.*--restart"),
        states.claimed({"text": "b", "teacher": "t"}, restart=False),
    ):
        pass
    with states.claimed({"text": "b", "teacher": "t"}, restart=True):
        assert states.last() is None


def test_two_at_once_are_refused(tmp_path):
    states = States(tmp_path / "out")
    with (
        states.claimed({}, restart=False),
        pytest.raises(OutputError, match="another process is writing it"),
        States(tmp_path / "out").claimed({}, restart=False),
    ):
        pass


def test_failing_before_anything_was_saved_leaves_nothing(tmp_path):
    states = States(tmp_path / "out")
    with pytest.raises(KeyboardInterrupt), states.claimed({}, restart=False):
        raise KeyboardInterrupt
    assert not states.folder.exists()
    with pytest.raises(KeyboardInterrupt), states.claimed({}, restart=False):
        save(states, 5)
        raise KeyboardInterrupt
    assert states.last() is not None


def test_figures_before_training_are_kept(tmp_path):
    states = States(tmp_path / "out")
    with states.claimed({"text": "a"}, restart=False):
        assert states.before is None
        states.note_before({"perplexity": 3.0})
        save(states, 5)
    with states.claimed({"text": "a"}, restart=False):
        assert states.before == {"perplexity": 3.0}


def test_a_disk_that_is_full_at_the_start(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    states = States(tmp_path / "out")
    with (
        pytest.raises(HealingError, match=r"No space left on device\); free some space"),
        states.claimed({}, restart=False),
    ):
        pass
    assert not states.folder.exists()
