"""The teacher's predictions on disk."""

import pytest
import torch

from conversion.errors import OutputError, TrainingError
from conversion.healing.losses import divergence, top_divergence
from conversion.healing.teacher_cache import TeacherCache
from conversion.runtime.progress import Progress
from tests.support.tiny import tiny_llama


def no_context():
    return torch.autocast("cpu", enabled=False)


def filled(folder, k, windows):
    teacher = tiny_llama()
    cache = TeacherCache(folder, "fingerprint", k)
    cache.fill(cache.missing(windows), teacher, no_context, Progress(None))
    return teacher, cache


def test_stored_predictions_are_the_teachers(tmp_path):
    windows = torch.randint(256, (3, 16), generator=torch.Generator().manual_seed(0))
    teacher, cache = filled(tmp_path, 200, windows)
    with torch.no_grad():
        theirs = teacher(windows[1:2]).logits[0]
    tokens, log_p, rest = cache.read(windows[1])
    # float16 holds a log-probability to 2^-10 of itself.
    expected = theirs.log_softmax(-1).gather(-1, tokens)
    torch.testing.assert_close(log_p, expected, rtol=2e-3, atol=1e-3)
    total = expected.exp().sum(-1) + rest
    torch.testing.assert_close(total, torch.ones(16), rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        student = tiny_llama(seed=1)(windows[1:2]).logits[0]
    stored = top_divergence(student, tokens, log_p, rest)
    # A lower bound: 56 of 256 tokens count as one.
    whole = float(divergence(student, theirs))
    assert 0.95 * whole < float(stored) < whole


def test_only_what_is_missing_is_asked(tmp_path):
    windows = torch.randint(256, (3, 16), generator=torch.Generator().manual_seed(0))
    _, cache = filled(tmp_path, 4, windows[:2])
    assert [row.tolist() for row in cache.missing(windows)] == [windows[2].tolist()]
    assert len(TeacherCache(tmp_path, "fingerprint", 5).missing(windows)) == 3
    assert len(TeacherCache(tmp_path, "another", 4).missing(windows)) == 3
    doubled = torch.cat((windows[2:], windows[2:]))
    assert len(cache.missing(doubled)) == 1


def test_its_size_is_what_was_said(tmp_path):
    windows = torch.randint(256, (2, 64), generator=torch.Generator().manual_seed(0))
    _, cache = filled(tmp_path, 32, windows)
    on_disk = sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors"))
    # safetensors' header, a few hundred bytes each.
    assert 0 <= on_disk - cache.bytes_of(list(windows)) < 2 * 500


def test_a_damaged_file_is_named(tmp_path):
    windows = torch.randint(256, (1, 16))
    _, cache = filled(tmp_path, 4, windows)
    (path,) = tmp_path.rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(TrainingError, match=path.name):
        cache.read(windows[0])


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="--cache-teacher"):
        TeacherCache(tmp_path / "file", "fingerprint", 4)
