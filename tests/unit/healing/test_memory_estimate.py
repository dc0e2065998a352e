"""Free memory before a healing: of the device, and of the host beside a GPU."""

import pytest
from torch import nn

from conversion.errors import TrainingError
from conversion.healing import memory_estimate
from conversion.healing.memory_estimate import available_bytes, check_memory, host_bytes

GIB = 1 << 30


@pytest.fixture
def free(monkeypatch):
    def set_free(**devices):
        monkeypatch.setattr(memory_estimate, "available_bytes", devices.__getitem__)

    return set_free


def test_on_the_cpu_a_control_groups_limit_counts(monkeypatch):
    monkeypatch.setattr(memory_estimate, "free_bytes", lambda: 3 * GIB)
    assert available_bytes("cpu") == 3 * GIB
    with pytest.raises(TrainingError, match=r"needs about 4\.0 GiB, 3\.0 GiB are free"):
        check_memory(4 * GIB, "cpu")


def test_the_machine_is_asked_where_the_system_does_not_say(monkeypatch):
    monkeypatch.setattr(memory_estimate, "free_bytes", lambda: None)
    assert available_bytes("cpu") > 0


def test_a_gpu_that_is_large_enough_needs_a_host_that_is(free):
    free(cuda=80 * GIB, cpu=20 * GIB)
    check_memory(60 * GIB, "cuda", host=20 * GIB)
    with pytest.raises(TrainingError, match=r"about 32\.0 GiB of it, 20\.0 GiB are free; end"):
        check_memory(60 * GIB, "cuda", host=32 * GIB)
    with pytest.raises(TrainingError, match=r"about 90\.0 GiB, 80\.0 GiB are free; lower"):
        check_memory(90 * GIB, "cuda", host=20 * GIB)


def test_the_host_holds_one_model_at_a_time():
    small, large = nn.Linear(10, 10, bias=False), nn.Linear(10, 30, bias=False)
    assert host_bytes(small, large) == 4 * 300
    assert host_bytes(large, None) == 4 * 300


def test_of_shards_the_host_collects_what_was_learned():
    student = nn.Sequential(nn.Linear(10, 10, bias=False), nn.Linear(10, 30, bias=False))
    student[1].requires_grad_(False)
    assert host_bytes(student, nn.Linear(99, 99), shards=2) == 4 * 100
