import signal

import pytest
import torch
from hypothesis import settings

from tests.support.triton_interpreter import interpret_triton

interpret_triton()

# A time limit would tell how busy the machine is, not whether a property holds.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
# A shell starts jobs in the background with Ctrl-C ignored, and so would be what tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config, items):
    """Put the longest first when two processes share the tests, so that both end together."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda test: ("engine" not in test.keywords, "slow" not in test.keywords))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Give each file to one process, for its fixtures, and the engine's all to the same one.

    An engine's test starts several processes with their own memory, and two such tests at once
    would be more than the machine has.
    """
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            return "tests/engine" if file.startswith("tests/engine/") else file

    return Scheduling(config, log)


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Tiny models gain nothing from threads, and threads that share a busy core wait for long."""
    torch.set_num_threads(1)
