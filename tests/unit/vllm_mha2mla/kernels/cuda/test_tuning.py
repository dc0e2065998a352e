import pytest

pytest.importorskip("triton")

from vllm_mha2mla.kernels.cuda.pieces import pieces_of
from vllm_mha2mla.kernels.cuda.tuning import Gpu, coded_shared_memory, coded_tiles, tiles_for

GPUS = (Gpu((9, 0), 132, 227 << 10), Gpu((8, 0), 108, 163 << 10), Gpu((8, 9), 128, 99 << 10))


@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: f"{gpu.capability}")
@pytest.mark.parametrize("queries", [16, 64])
@pytest.mark.parametrize(
    ("rank", "rope", "ahead"), [(192, 64, True), (80, 40, True), (85, 38, False), (80, 38, False)]
)
def test_tiles_are_loaded_ahead_only_where_all_of_a_row_can_be(gpu, queries, rank, rope, ahead):
    assert (tiles_for(rank, rope, queries, gpu, 2).stages > 1) is ahead


@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: f"{gpu.capability}")
@pytest.mark.parametrize("rank", [8, 192, 512, 1024, 1280])
@pytest.mark.parametrize("queries", [1, 9, 32, 500])
def test_tiles_of_coded_rows_fit_shared_memory_and_registers(gpu, rank, queries):
    pieces = pieces_of(rank, 64)
    tiles = coded_tiles(pieces, queries, gpu, 2)
    assert coded_shared_memory(tiles, pieces, gpu, 2) <= gpu.shared_memory
    # Outputs of 32 bits take at most half of a thread's 255 registers.
    assert pieces.latent * tiles.queries <= 128 * tiles.warps * 32
    assert tiles.queries >= min(queries, 16)
