"""The server's memory and its log."""

import pytest


@pytest.fixture
def watch(abuse):
    return abuse("watch")


def test_memory_that_grows_is_found(watch):
    leaking = [1000 + 10 * number for number in range(40)]
    assert watch.growth(leaking) > watch.MEMORY_SHARE
    flat = [500, 900, *([1000, 1010] * 19)]
    assert abs(watch.growth(flat)) < watch.MEMORY_SHARE


def test_a_few_rounds_tell_nothing_about_memory(watch):
    assert watch.growth([1, 2, 3]) is None


def test_errors_in_a_log_are_found(watch):
    fine = "INFO 11-28 all is well\nWARNING [hf.py:839] rejected the request: no ERRORS here"
    assert watch.alarms(fine) == []
    for line in (
        "(EngineCore pid=1) ERROR 11-28 [core.py] died",
        "Traceback (most recent call last):",
        "!!!!!!! Segfault encountered: Segmentation fault",
    ):
        assert watch.alarms(f"{fine}\n{line}\n{fine}") == [line]


def test_metrics_of_another_vllm_are_an_error_with_a_line(watch):
    with pytest.raises(watch.UnansweredError, match="num_requests_running"):
        watch.parse("# HELP nothing\n")
