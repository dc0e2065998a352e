import pytest

from conversion.errors import UsageError
from conversion.runtime.device import usable_device


def test_a_device_that_is_here():
    assert usable_device("cpu") == "cpu"


@pytest.mark.parametrize("name", ["mps", "hpu", "toaster"])
def test_a_device_that_is_not_here_is_named_in_a_short_line(name):
    with pytest.raises(
        UsageError, match=rf"^--device {name}: not usable here \(.*\); try cpu$"
    ) as e:
        usable_device(name)
    assert len(str(e.value)) < 300
