import pytest
from torch import Tensor

from tests.support.measured import measure
from tests.support.tiny import VARIANTS


@pytest.fixture(params=VARIANTS)
def measured(request):
    """A tiny layer of each attention variant: weights, statistics, inputs."""
    weights, statistics, inputs = measure(request.param)
    tensors = [
        x
        for x in (inputs, *vars(weights).values(), *vars(statistics).values())
        if isinstance(x, Tensor)
    ]
    before = [x._version for x in tensors]
    yield weights, statistics, inputs
    # They are shared by all tests, so a test that writes into one breaks others.
    assert [x._version for x in tensors] == before
