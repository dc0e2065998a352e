"""Rows rounded, packed and read from a paged cache, against loops over single numbers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_mha2mla.coding.codebooks import BITS, codebook
from vllm_mha2mla.coding.packing import byte_places, pack, unpack
from vllm_mha2mla.coding.rounding import decode, encode, rounded
from vllm_mha2mla.coding.row_code import CodedRow, RowCode, row_codes
from vllm_mha2mla.config import LatentWidths
from vllm_mha2mla.errors import CheckpointError
from vllm_mha2mla.hf.llama import LlamaMLAConfig
from vllm_mha2mla.kernels.coded_reference import CodedCache

each_bits = st.sampled_from(BITS)


@st.composite
def codes(draw):
    latent = draw(st.lists(each_bits, min_size=1, max_size=5))
    half = draw(st.lists(each_bits, max_size=3))
    widths = LatentWidths(8 * len(latent), 16 * len(half))
    return RowCode(widths, (*latent, *half, *half))


def drawn_rows(code, count, seed):
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.exp(torch.randn(count, 1, generator=generator))
    return torch.randn(count, code.widths.width, generator=generator) * sizes


def rounded_by_hand(code, row):
    """One row rounded number by number, in Python's floats."""
    rank, result = code.widths.kv_lora_rank, []
    books = [codebook(bits) for bits in code.column_bits]
    for part in (range(rank), range(rank, code.widths.width)):
        if not len(part):
            continue
        power = sum((float(row[j]) / books[j].gain) ** 2 for j in part) / len(part)
        s = 2 ** (round(8 * math.log2(math.sqrt(power))) / 8)
        for j in part:
            levels = (float(level) * s / 128 for level in books[j].levels)
            result.append(min(levels, key=lambda level: abs(level - float(row[j]))))
    return torch.tensor(result)


@given(codes(), st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_rounding_is_to_the_nearest_level_times_the_scale(code, seed):
    rows = drawn_rows(code, 3, seed)
    found = rounded(code, rows, torch.zeros(rows.shape[1]), torch.zeros(3, dtype=torch.bool))
    for row, result in zip(rows, found, strict=True):
        by_hand = rounded_by_hand(code, row)
        # Half way between two levels either is as near: compare distances, not levels.
        torch.testing.assert_close(
            (result - row).abs(), (by_hand - row).abs(), rtol=1e-4, atol=1e-5
        )


def test_the_first_row_is_coded_as_a_difference():
    code = RowCode(LatentWidths(16, 16), (2,) * 4)
    first = torch.full((32,), 50.0)
    rows = drawn_rows(code, 2, 0) + first
    found = rounded(code, rows, first, torch.tensor([True, False]))
    as_usual = rounded(code, rows - first, first, torch.tensor([False, False])) + first
    assert torch.equal(found[0], as_usual[0])
    assert not torch.equal(found[1], as_usual[1])


def test_gradients_pass_as_if_nothing_were_rounded():
    code = RowCode(LatentWidths(16, 0), (1, 3))
    rows = drawn_rows(code, 4, 1).requires_grad_()
    result = rounded(code, rows, torch.zeros(16), torch.zeros(4, dtype=torch.bool))
    assert not torch.equal(result, rows)
    weights = drawn_rows(code, 4, 2)
    (result * weights).sum().backward()
    assert torch.equal(rows.grad, weights)


def test_rounding_computes_in_float32_within_autocast():
    code = RowCode(LatentWidths(32, 0), (6,) * 4)
    rows, no = drawn_rows(code, 4, 3), torch.zeros(4, dtype=torch.bool)
    plain = rounded(code, rows, torch.zeros(32), no)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(rounded(code, rows, torch.zeros(32), no), plain)


@given(codes(), st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_packing_is_undone_by_unpacking(code, seed):
    found, scales = encode(code, drawn_rows(code, 5, seed))
    packed = pack(code, found, scales)
    assert packed.shape == (5, code.row_bytes)
    again, scales_again = unpack(code, packed)
    assert torch.equal(again, found)
    assert torch.equal(scales_again, scales)


def test_codes_lie_lowest_bits_first():
    code = RowCode(LatentWidths(8, 0), (3,))
    eight = torch.tensor([[1, 2, 3, 4, 5, 6, 7, 0]], dtype=torch.uint8)
    packed = pack(code, eight, torch.tensor([[9, 8]], dtype=torch.uint8))
    number = sum(int(value) << 3 * i for i, value in enumerate(eight[0]))
    assert packed[0].tolist() == [*number.to_bytes(3, "little"), 9, 8]


@given(codes(), st.sampled_from([8, 16, 24]))
@settings(max_examples=25, deadline=None)
def test_rows_of_a_block_fill_it_without_sharing_a_byte(code, block_size):
    places = byte_places(code, torch.arange(block_size))
    assert sorted(places.flatten().tolist()) == list(range(block_size * code.row_bytes))
    # A row's bytes stay within its group of eight.
    assert torch.equal(
        places // (8 * code.row_bytes), (torch.arange(block_size) // 8)[:, None].expand_as(places)
    )


@given(codes(), st.integers(1, 40), st.integers(0, 2**31))
@settings(max_examples=15, deadline=None)
def test_a_paged_cache_gives_back_what_rounding_gives(code, length, seed):
    generator = torch.Generator().manual_seed(seed)
    width, rope, block_size = code.widths.width, code.widths.qk_rope_head_dim, 16
    coded = CodedRow(code, torch.zeros(rope), torch.randn(width, generator=generator))
    blocks = torch.randperm(5, generator=generator)
    cache = torch.randint(0, 256, (5, block_size, code.row_bytes), generator=generator).byte()
    paged = CodedCache(cache, coded, torch.rand(rope // 2, generator=generator))
    rows, n = drawn_rows(code, length, seed), torch.arange(length)
    slots = blocks[n // block_size] * block_size + n % block_size
    order = torch.randperm(length + 1, generator=generator)
    padded_rows, padded_slots = torch.cat((rows, rows[:1])), torch.cat((slots, -slots.new_ones(1)))
    paged.write(padded_rows[order], torch.cat((n, n[:1]))[order], padded_slots[order])
    expected = rounded(code, rows, coded.first_row, n == 0)
    torch.testing.assert_close(paged.rows(blocks, length), expected, rtol=0, atol=1e-5)


def test_the_mean_of_rotary_columns_turns_with_the_position():
    code = RowCode(LatentWidths(8, 16), (4, 4, 4))
    mean, inv_freq = torch.arange(16.0), torch.rand(8)
    coded = CodedRow(code, mean, torch.zeros(24))
    cache = torch.zeros(1, 8, code.row_bytes, dtype=torch.uint8)  # scales of 2^-16
    rows = CodedCache(cache, coded, inv_freq).rows(torch.tensor([0]), 4)
    turned = torch.polar(torch.ones(8), 3 * inv_freq) * torch.complex(mean[:8], mean[8:])
    torch.testing.assert_close(
        rows[3, 8:], torch.cat((turned.real, turned.imag)), atol=1e-3, rtol=0
    )


def test_sizes_of_a_code():
    code = RowCode(LatentWidths(16, 16), (6, 2, 3, 3))
    assert code.row_bytes == 6 + 2 + 3 + 3 + 2
    assert (code.latent_units, code.rotary_units) == ((6, 2), ((3,), (3,)))
    assert code.unit_offsets == (0, 6, 8, 11, 14)


@pytest.mark.parametrize(
    ("bits", "message"),
    [
        ([[4, 4, 4], [4, 4, 4], [4, 4]], "2 units"),
        ([[4, 4, 4], [4, 4, 4]], "2 entries for 3 layers"),
        ([[4, 4, 4], [4, 5, 4], [4, 4, 4]], "5 bits"),
        ([[4, 4, 4], [4, 2, 4], [4, 4, 4]], "halves"),
    ],
)
def test_impossible_codes_are_refused(bits, message):
    config = LlamaMLAConfig(
        num_hidden_layers=3, kv_lora_rank=8, qk_rope_head_dim=16, row_bits_per_layer=bits
    )
    with pytest.raises(CheckpointError, match=message):
        row_codes(config)


def test_a_config_without_bits_has_no_codes():
    assert row_codes(LlamaMLAConfig()) is None


@given(codes(), st.integers(0, 2**31))
@settings(max_examples=10, deadline=None)
def test_all_bytes_decode_to_finite_numbers(code, seed):
    generator = torch.Generator().manual_seed(seed)
    packed = torch.randint(0, 256, (6, code.row_bytes), generator=generator).byte()
    assert decode(code, *unpack(code, packed)).isfinite().all()
