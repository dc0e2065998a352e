"""The kernel for Hopper against the same formulation as the one for any GPU, in emulation."""

import sys

import pytest
import torch

from tests.support.gluon_on_cpu import hopper_on_cpu
from tests.unit.vllm_mha2mla.kernels.cuda.paged import DEVICE, TOLERANCES, Paged
from vllm_mha2mla.kernels.cuda import attention, tuning
from vllm_mha2mla.kernels.cuda.attention import attend
from vllm_mha2mla.kernels.cuda.tuning import Tiles

pytestmark = pytest.mark.skipif(
    DEVICE == "cuda", reason="on a GPU the kernel itself is tested, as the one that is chosen"
)
DECODE = [(200, 1), (37, 1), (64, 1), (1, 1)]
MIXED = [(100, 1), (37, 5), (20, 20), (0, 0), (65, 0), (130, 1)]


@pytest.fixture
def emulated(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm_mha2mla.kernels.cuda.hopper", hopper_on_cpu())


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize("stages", [2, 3])
@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("batch", [DECODE, MIXED], ids=["decode", "mixed"])
def test_it_is_softmax_attention_over_the_rows_of_each_request(batch, splits, stages):
    check(Paged(batch, 2, 24, 8, torch.float16), splits, Tiles(16, 64, 4, stages, by_hand=True))


@pytest.mark.usefixtures("emulated")
@pytest.mark.parametrize(("rank", "rope"), [(80, 40), (192, 8), (448, 64), (16, 0)])
def test_any_width_in_one_two_or_three_chunks(rank, rope):
    paged = Paged([(70, 1), (40, 2)], 2, rank, rope, torch.float16)
    check(paged, 2, Tiles(16, 32, 4, 2, by_hand=True))


def check(paged, splits, tiles):
    padded = 2
    arguments = paged.arguments(padded)
    tokens, heads = arguments[0].shape[:2]
    out = torch.full((tokens, heads, paged.rank), 7.0, dtype=torch.float16)
    lse = torch.full((tokens, heads), 7.0)
    attend(*arguments, out, lse, splits, tiles)
    expected, expected_lse = paged.expected()
    tolerance = TOLERANCES[torch.float16]
    torch.testing.assert_close(out[:-padded].double(), expected, atol=tolerance, rtol=0)
    torch.testing.assert_close(lse[:-padded].double(), expected_lse, atol=tolerance, rtol=1e-3)
    assert (out[-padded:] == 7).all()


def test_where_it_does_not_compile_the_kernel_for_any_gpu_takes_over(monkeypatch, caplog):
    monkeypatch.setattr(tuning, "_failures", [])
    monkeypatch.setitem(sys.modules, "vllm_mha2mla.kernels.cuda.hopper", None)
    paged = Paged([(20, 1)], 2, 16, 8, torch.float16)
    with caplog.at_level("WARNING", attention.logger.name):
        check(paged, 1, Tiles(16, 32, 4, 2, by_hand=True))
    assert "takes over" in caplog.text
    assert not tuning.gluon_is_known()
