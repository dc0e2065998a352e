import pytest

from tests.support.measured import measure
from tests.support.tiny import VARIANTS


@pytest.fixture(params=VARIANTS)
def measured(request):
    """A tiny layer of each attention variant: weights, statistics, inputs."""
    return measure(request.param)
