import pytest

from vllm_mha2mla.config import LatentWidths
from vllm_mha2mla.padding import cache_bytes_per_token, padded_width, row_bytes


@pytest.mark.parametrize(
    ("rank", "rope", "padded"), [(56, 40, 96), (1, 0, 8), (57, 40, 104), (512, 64, 576)]
)
def test_rows_on_gpus_are_whole_vectors_of_8(rank, rope, padded):
    assert padded_width(LatentWidths(rank, rope), "cuda") == padded


def test_rows_on_cpus_are_as_wide_as_their_parts():
    assert padded_width(LatentWidths(57, 40), "cpu") == 97


def test_the_cache_of_all_layers_counts_padding():
    layer_widths = [LatentWidths(8, 4), LatentWidths(16, 4), LatentWidths(30, 4)]
    assert row_bytes(layer_widths, 2) == [24, 40, 68]
    assert row_bytes(layer_widths, 2, "cuda") == [32, 48, 80]
    assert cache_bytes_per_token([24, 40, 68], kept=1) == 24 + 40 + 68


@pytest.mark.parametrize(
    ("rows", "taken"),
    [
        # Four rows of the widest in the place of a token's keys and values, with 8 bytes left.
        ([0, 30, 0, 20], 2 * 128 / 4),
        ([0, 32, 0, 32], 2 * 128 / 4),
        # Not even two.
        ([0, 65, 0, 20], 2 * 128),
        # Wider than keys and values, which are padded then.
        ([0, 130, 0, 20], 2 * 130),
    ],
)
def test_beside_kept_layers_every_layer_takes_what_the_widest_does(rows, taken):
    assert cache_bytes_per_token(rows, kept=128) == taken
