import signal

import pytest
import torch
from hypothesis import settings

# A time limit would tell how busy the machine is, not whether a property holds.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
# A shell starts jobs in the background with Ctrl-C ignored, and so would be what tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Tiny models gain nothing from threads, and threads that share a busy core wait for long."""
    torch.set_num_threads(1)
