import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Tiny models gain nothing from threads, and threads that share a busy core wait for long."""
    torch.set_num_threads(1)
