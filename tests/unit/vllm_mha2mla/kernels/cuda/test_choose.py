from types import SimpleNamespace

import pytest

from vllm_mha2mla.config import LatentWidths
from vllm_mha2mla.errors import UnsupportedEngineError
from vllm_mha2mla.kernels.cuda.choose import Offers, Ways, choose, option_of
from vllm_mha2mla.padding import padded_width

HOPPER, AMPERE, NOTHING = Offers(3, split=True), Offers(2, split=False), Offers(None, split=False)


@pytest.mark.parametrize(
    ("rank", "rope", "offers", "option", "way"),
    [
        (192, 64, HOPPER, "auto", "triton, flash"),
        (192, 64, AMPERE, "auto", "flash"),
        (192, 64, NOTHING, "auto", "triton"),
        (192, 64, HOPPER, "triton", "triton"),
        (256, 64, HOPPER, "auto", "flash_split"),
        (512, 64, HOPPER, "auto", "flash_split"),
        (512, 64, AMPERE, "auto", "triton"),
        (512, 64, HOPPER, "triton", "triton"),
        (512, 64, HOPPER, "flash", "flash_split"),
        (448, 64, HOPPER, "auto", "triton"),
        (192, 64, HOPPER, "flash", "flash_whole"),
        (448, 64, HOPPER, "flash", "flash_whole"),
        (480, 40, HOPPER, "flash", "flash_split"),
        # Told to use FlashAttention, a layer that it does not take is served all the same.
        (448, 72, HOPPER, "flash", "triton"),
        (512, 64, AMPERE, "flash", "triton"),
        (191, 64, HOPPER, "auto", "flash"),
        (80, 40, HOPPER, "auto", "triton, flash"),
        (80, 40, HOPPER, "flash", "flash"),
        (250, 8, HOPPER, "auto", "triton"),
    ],
)
def test_way_of_a_layer(rank, rope, offers, option, way):
    widths = LatentWidths(rank, rope)
    row = padded_width(widths, "cuda")
    decode, _, prefill = way.partition(", ")
    assert choose(widths, row, offers, option) == Ways(decode, prefill or decode)


def test_options():
    assert option_of(SimpleNamespace()) == "auto"
    assert option_of(SimpleNamespace(mha2mla_attention="flash")) == "flash"
    with pytest.raises(UnsupportedEngineError, match="'fast': choose one of auto, triton"):
        option_of(SimpleNamespace(mha2mla_attention="fast"))
