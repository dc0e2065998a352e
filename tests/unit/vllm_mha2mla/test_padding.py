import pytest

from vllm_mha2mla.config import LatentWidths
from vllm_mha2mla.padding import padded_width


@pytest.mark.parametrize(
    ("rank", "rope", "padded"), [(56, 40, 96), (1, 0, 8), (57, 40, 104), (512, 64, 576)]
)
def test_rows_on_gpus_are_whole_vectors_of_8(rank, rope, padded):
    assert padded_width(LatentWidths(rank, rope), "cuda") == padded


def test_rows_on_cpus_are_as_wide_as_their_parts():
    assert padded_width(LatentWidths(57, 40), "cpu") == 97
