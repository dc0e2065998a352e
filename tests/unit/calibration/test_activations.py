from pathlib import Path

import pytest
import torch

from conversion.calibration.activations import Activations
from conversion.errors import OffloadError


@pytest.mark.parametrize("offloaded", [False, True])
# Windows larger than a page of memory, smaller, and not a multiple of one.
@pytest.mark.parametrize("shape", [(3, 512, 16), (50, 5, 3), (3, 700, 11)])
def test_windows_are_what_was_written_last(tmp_path, shape, offloaded):
    expected = torch.randn(shape)
    activations = Activations(*shape, tmp_path if offloaded else None)
    for window, x in enumerate(expected):
        activations[window] = x
    assert len(activations) == shape[0]
    assert activations.nbytes == expected.nbytes
    assert torch.equal(torch.stack(list(activations)), expected)
    expected[1] = 7
    activations[1] = expected[1].double()
    assert torch.equal(torch.stack(list(activations)), expected)


def test_the_file_has_no_name(tmp_path):
    activations = Activations(2, 30, 40, tmp_path)
    activations[1] = torch.ones(30, 40)
    assert str(tmp_path) in Path("/proc/self/maps").read_text()
    assert list(tmp_path.iterdir()) == []
    del activations
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


def test_no_such_folder(tmp_path):
    with pytest.raises(OffloadError, match=r"--offload .*nowhere.*No such file"):
        Activations(2, 3, 4, tmp_path / "nowhere")
