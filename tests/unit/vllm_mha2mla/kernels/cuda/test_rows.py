import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vllm_mha2mla.kernels.cuda.rows import alignment, row_chunks


@pytest.mark.parametrize(
    ("rank", "latent"),
    [
        (1, (64, 0, 0)),
        (80, (128, 0, 0)),
        (192, (128, 64, 0)),
        (448, (256, 128, 64)),
        (512, (512, 0, 0)),
    ],
)
def test_a_row_has_the_chunks_with_the_least_padding(rank, latent):
    assert row_chunks(rank, 40).latent == latent
    assert row_chunks(rank, 40).rotary == 64


@given(st.integers(1, 1024))
def test_chunks_cover_the_latents_and_each_of_them_is_needed(rank):
    latent = row_chunks(rank, 0).latent
    assert sum(latent) >= rank
    assert all(chunk == 0 or (chunk >= 64 and chunk.bit_count() == 1) for chunk in latent)
    needed = [chunk for chunk in latent if chunk]
    assert sum(needed[:-1]) < rank
    assert sum(latent) <= max(64, 1 << (rank - 1).bit_length())


def test_alignment_is_what_all_rows_share():
    storage = torch.zeros(4, 16 * 24 + 4, dtype=torch.float16)
    assert alignment(torch.zeros(4, 16, 24, dtype=torch.float16)) == 8
    assert alignment(storage[:, : 16 * 24].unflatten(1, (16, 24))) == 4
    assert alignment(torch.zeros(4, 16, 25, dtype=torch.float16)) == 1
    assert alignment(torch.zeros(4, 16, 24, dtype=torch.float32)) == 4
