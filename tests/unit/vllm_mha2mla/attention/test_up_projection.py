import pytest
import torch

pytest.importorskip("vllm")

from vllm_mha2mla.attention.up_projection import groups_of_rank, split_by_group
from vllm_mha2mla.errors import CheckpointError


@pytest.mark.parametrize(
    ("heads", "groups", "ranks", "expected"),
    [
        (8, 2, 1, [[0, 1]]),
        (8, 2, 2, [[0], [1]]),
        (8, 2, 4, [[0], [0], [1], [1]]),
        (8, 8, 2, [[0, 1, 2, 3], [4, 5, 6, 7]]),
        (8, 1, 2, [[0], [0]]),
        # Groups of 4 heads on ranks of 6: each rank has heads of two groups, in unequal numbers.
        (12, 3, 2, [[0, 0, 0, 0, 1, 1], [1, 1, 2, 2, 2, 2]]),
    ],
)
def test_every_head_finds_its_group_on_its_rank(heads, groups, ranks, expected):
    found = [groups_of_rank(heads, groups, ranks, rank) for rank in range(ranks)]
    assert found == expected
    here = heads // ranks
    of_heads = [head * groups // heads for head in range(heads)]
    for rank, own in enumerate(found):
        shared = [own[head * len(own) // here] for head in range(here)]
        assert shared == of_heads[rank * here : (rank + 1) * here]


@pytest.mark.parametrize("shape", [(5, 12), (60,), (2, 6, 5), (6, 10)])
def test_as_many_numbers_of_another_shape_are_refused(shape):
    assert split_by_group(torch.ones(12, 5), 2, 6, 5).shape == (2, 6, 5)
    with pytest.raises(CheckpointError, match=r"kv_b_proj has shape .* promises \[12, 5\]"):
        split_by_group(torch.ones(shape), 2, 6, 5)
