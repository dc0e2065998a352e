import pytest

from vllm_mha2mla.config import LatentWidths
from vllm_mha2mla.padding import cache_bytes_per_token, padded_width


@pytest.mark.parametrize(
    ("rank", "rope", "padded"), [(56, 40, 96), (1, 0, 8), (57, 40, 104), (512, 64, 576)]
)
def test_rows_on_gpus_are_whole_vectors_of_8(rank, rope, padded):
    assert padded_width(LatentWidths(rank, rope), "cuda") == padded


def test_rows_on_cpus_are_as_wide_as_their_parts():
    assert padded_width(LatentWidths(57, 40), "cpu") == 97


def test_the_cache_of_all_layers_counts_padding():
    layer_widths = [LatentWidths(8, 4), LatentWidths(16, 4), LatentWidths(30, 4)]
    assert cache_bytes_per_token(layer_widths, 2) == 2 * (12 + 20 + 34)
    assert cache_bytes_per_token(layer_widths, 2, "cuda") == 2 * (16 + 24 + 40)
