import pytest

pytest.importorskip("triton")

from vllm_mha2mla.kernels.cuda.tuning import Gpu, tiles_for

GPUS = (Gpu((9, 0), 132, 227 << 10), Gpu((8, 0), 108, 163 << 10), Gpu((8, 9), 128, 99 << 10))


@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: f"{gpu.capability}")
@pytest.mark.parametrize("queries", [16, 64])
@pytest.mark.parametrize(
    ("rank", "rope", "ahead"), [(192, 64, True), (80, 40, True), (85, 38, False), (80, 38, False)]
)
def test_tiles_are_loaded_ahead_only_where_all_of_a_row_can_be(gpu, queries, rank, rope, ahead):
    assert (tiles_for(rank, rope, queries, gpu, 2).stages > 1) is ahead
