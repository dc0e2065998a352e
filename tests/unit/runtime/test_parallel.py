"""Independent pieces of work side by side."""

import threading

import pytest
import torch

from conversion.runtime.parallel import side_by_side


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_results_come_in_order_and_threads_are_shared():
    def work(item):
        return item, torch.get_num_threads(), torch.is_grad_enabled()

    with torch.no_grad():
        assert list(side_by_side(work, range(9), at_most=2)) == [(n, 2, False) for n in range(9)]
    assert torch.get_num_threads() == 4
    assert list(side_by_side(work, range(1), at_most=1)) == [(0, 4, True)]


@pytest.mark.usefixtures("threads")
def test_no_more_items_are_taken_than_run_at_once():
    taken, done = [], []

    def items():
        for item in range(20):
            taken.append(item)
            assert len(taken) - len(done) <= 3
            yield item

    for result in side_by_side(lambda item: item, items(), at_most=3):
        done.append(result)
    assert done == list(range(20))


@pytest.mark.usefixtures("threads")
def test_pieces_run_at_the_same_time_and_an_error_is_the_caller_s():
    both = threading.Barrier(2, timeout=30)
    assert list(side_by_side(lambda item: both.wait() >= 0, range(2), at_most=2)) == [True, True]

    def fail(item):
        raise ValueError(f"piece {item}")

    with pytest.raises(ValueError, match="piece 0"):
        list(side_by_side(fail, range(5)))
    assert torch.get_num_threads() == 4
