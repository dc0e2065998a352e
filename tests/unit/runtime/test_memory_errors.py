import pytest
import torch

from conversion.errors import DeviceMemoryError
from conversion.runtime.memory_errors import memory_errors

ON_A_GPU = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB of "
    "which 1.20 GiB is free. Including non-PyTorch memory, this process has 77 GiB in use."
)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            torch.OutOfMemoryError(ON_A_GPU),
            "CUDA out of memory. Tried to allocate 2.00 GiB",
        ),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
            "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate",
        ),
        (MemoryError(), "MemoryError"),
    ],
)
def test_memory_that_runs_out_is_one_line_with_a_way_out(error, reason):
    with pytest.raises(DeviceMemoryError) as raised, memory_errors("take less"):
        raise error
    assert str(raised.value) == f"memory ran out ({reason}); take less"


def test_what_the_cpu_says():
    with pytest.raises(DeviceMemoryError, match="can't allocate memory"), memory_errors("less"):
        torch.empty(1 << 60)


def test_other_errors_stay_as_they_are():
    with pytest.raises(RuntimeError, match="shapes"), memory_errors("take less"):
        raise RuntimeError("shapes do not fit")
