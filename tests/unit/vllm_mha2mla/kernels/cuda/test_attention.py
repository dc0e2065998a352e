import pytest
import torch

from tests.unit.vllm_mha2mla.kernels.cuda.paged import DEVICE, DTYPES, TOLERANCES, Paged
from vllm_mha2mla.kernels.cuda.attention import attend

DECODE = [(100, 1), (37, 1), (64, 1), (1, 1)]
SPECULATIVE = [(100, 3), (37, 3), (3, 3)]
MIXED = [(100, 1), (37, 5), (50, 50), (0, 0), (65, 0), (17, 16), (130, 1)]


def check(paged, dtype, **options):
    padded = 3
    arguments = paged.arguments(padded)
    tokens, heads = arguments[0].shape[:2]
    out = torch.full((tokens, heads, paged.rank), 7.0, dtype=dtype, device=DEVICE)
    lse = torch.full((heads, tokens), 7.0, device=DEVICE)
    attend(*arguments, out, lse.T, **options)
    expected, expected_lse = paged.expected()
    out, lse = out.double().cpu(), lse.T.double().cpu()
    torch.testing.assert_close(out[:-padded], expected, atol=TOLERANCES[dtype], rtol=0)
    torch.testing.assert_close(lse[:-padded], expected_lse, atol=TOLERANCES[dtype], rtol=1e-3)
    # What pads a CUDA graph is left as it was.
    assert (out[-padded:] == 7).all()
    assert (lse[-padded:] == 7).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("batch", [DECODE, SPECULATIVE, MIXED], ids=["1", "3", "mixed"])
def test_it_is_softmax_attention_over_the_rows_of_each_request(batch, splits, dtype):
    check(Paged(batch, 4, 24, 8, dtype), dtype, splits=splits)


@pytest.mark.parametrize(
    ("rank", "rope"), [(1, 2), (13, 6), (16, 0), (80, 40), (112, 16), (200, 2)]
)
@pytest.mark.parametrize("splits", [1, 2])
def test_any_width_in_one_two_or_three_chunks(rank, rope, splits):
    check(Paged([(70, 1), (40, 2)], 2, rank, rope, torch.float32), torch.float32, splits=splits)


@pytest.mark.parametrize("heads", [1, 3, 9, 32, 128])
def test_any_number_of_heads(heads):
    check(Paged([(40, 1), (21, 2)], heads, 16, 4, torch.float32), torch.float32)


@pytest.mark.parametrize("block_size", [1, 16, 48, 64])
def test_any_block_size_with_gaps_and_padded_columns(block_size):
    paged = Paged([(100, 1), (47, 2)], 2, 12, 4, torch.float32, block_size, gap=24, padding=8)
    check(paged, torch.float32)


def test_more_shares_than_tiles():
    check(Paged([(33, 1), (1, 1), (0, 0)], 2, 16, 4, torch.float32), torch.float32, splits=7)


def test_a_request_without_context_gives_zeros():
    paged = Paged([(0, 1), (5, 1)], 2, 16, 4, torch.float32)
    arguments = paged.arguments()
    for splits in (1, 2):
        out = torch.full((2, 2, 16), 7.0, device=DEVICE)
        lse = torch.full((2, 2), 7.0, device=DEVICE)
        attend(*arguments, out, lse, splits=splits)
        assert (out[0] == 0).all()
        assert (lse[0] == float("-inf")).all()
        assert out[1].isfinite().all()


def test_an_empty_batch_does_nothing():
    paged = Paged([(5, 1)], 2, 16, 4, torch.float32)
    query, *rest = paged.arguments()
    attend(query[:0], *rest, torch.empty(0, 2, 16, device=DEVICE))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_padded_row_of_odd_parts_is_loaded_whole(dtype):
    paged = Paged([(100, 1), (47, 2)], 2, 13, 6, dtype, padding=5)
    paged.cache[..., 19:].nan_to_num_(0.0)  # what pads a written row is zero
    check(paged, dtype, splits=2)
