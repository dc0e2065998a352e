import pytest

from conversion.errors import UsageError
from conversion.runtime.device import usable_device


def test_a_device_that_is_here():
    assert usable_device("cpu") == "cpu"


@pytest.mark.parametrize("name", ["mps", "hpu", "meta", "toaster"])
def test_a_device_that_is_not_here_is_named_in_a_short_line(name):
    with pytest.raises(UsageError) as refusal:
        usable_device(name)
    line = str(refusal.value)
    assert line.startswith(f"--device {name}: not usable here (")
    assert line.endswith("; try cpu")
    assert len(line) < 300
