"""The self-check of sound kernels, and of kernels with one fault each."""

from dataclasses import replace

import pytest
import torch

from vllm_mha2mla.coding.codebooks import codebook
from vllm_mha2mla.coding.packing import pack
from vllm_mha2mla.coding.rounding import STEPS_PER_OCTAVE, encode
from vllm_mha2mla.coding.row_code import CodedRow, RowCode
from vllm_mha2mla.config import LatentWidths
from vllm_mha2mla.kernels import PagedBatch, build, cpu
from vllm_mha2mla.kernels.reference import ReferenceLayer
from vllm_mha2mla.rope import apply_rotary, rotary_angles
from vllm_mha2mla.self_check.check import check
from vllm_mha2mla.self_check.reference import Reference, Subject
from vllm_mha2mla.self_check.requests import batches

LIBRARY = build.library()
MAKERS = {"reference": ReferenceLayer} | {
    isa: cpu.CpuKernel(LIBRARY, isa).layer for isa in cpu.supported(LIBRARY)
}
BEST = next(isa for isa in MAKERS if isa != "reference")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BITS = (6, 4, 2, 8, 3, 1, 4, 2, 4, 2)
CODE = RowCode(LatentWidths(48, 32), BITS)
# (blocks, rows of a block, tokens of the longest text): many, as few as there can be, short texts.
SHAPES = [(40, 16, 4096), (9, 128, 4096), (3, 16, 100), (2, 8, 100), (1, 8, 5), (40, 64, 1)]

each_maker = pytest.mark.parametrize("isa", MAKERS)
each_kind = pytest.mark.parametrize("coded", [False, True], ids=["plain", "coded"])


def subject(isa, coded, dtype, shape=SHAPES[0], cache_dtype=None, widths=CODE.widths):
    """A layer of random weights over a cache of what other requests have left."""
    generator = torch.Generator().manual_seed(3)
    blocks, block_size, longest = shape

    def random(*size):
        return torch.randn(size, generator=generator)

    if coded:
        size = (blocks, block_size, CODE.row_bytes)
        cache = torch.randint(256, size, generator=generator).to(torch.uint8)
    else:
        cache = random(blocks, block_size, widths.width).to(cache_dtype or dtype)
    up = (random(3, 24 + 16, widths.kv_lora_rank) / 5).to(dtype)
    rope = widths.qk_rope_head_dim
    return Subject(
        cache,
        *(up[:, :24], up[:, 24:], 10.0 ** -torch.linspace(0, 4, rope // 2), 0.2, 6, widths),
        CodedRow(CODE, random(rope), 3 * random(widths.width)) if coded else None,
        None if isa == "reference" else isa,
        longest,
    )


def computing(of, isa, change_batch=lambda batch: batch, change_out=lambda out: out):
    """Run the kernel on a layer, which may be another than the one that is checked."""
    weights = (of.w_uk, of.w_uv, of.inv_freq, of.scale, of.heads, of.coded)
    layer = MAKERS[isa](of.cache, *weights)

    def compute(query, rows, batch):
        out = query.new_full((batch.tokens, of.heads * of.w_uv.shape[1]), torch.nan)
        step = PagedBatch(batch.tokens, batch.starts, batch.lengths, batch.table, batch.slots)
        layer(query, rows, batch.positions, change_batch(step), out)
        return change_out(out)

    return compute


@each_maker
@each_kind
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_sound_kernel_passes_and_the_cache_is_as_it_was(isa, coded, dtype, shape):
    layer = subject(isa, coded, dtype, shape)
    before = layer.cache.clone()
    assert check(layer, computing(layer, isa)) is None
    assert torch.equal(layer.cache, before)


@each_maker
@pytest.mark.parametrize("widths", [(1, 0), (5, 6), (130, 2), (512, 64)])
@pytest.mark.parametrize("dtypes", [(torch.bfloat16,) * 2, (torch.float32, torch.bfloat16)])
def test_other_widths_and_caches_of_another_dtype(isa, widths, dtypes):
    dtype, cache_dtype = dtypes
    layer = subject(isa, False, dtype, cache_dtype=cache_dtype, widths=LatentWidths(*widths))
    assert check(layer, computing(layer, isa)) is None


def test_texts_reach_the_ends_of_the_cache():
    steps = list(batches(40, 16, 4096))
    blocks = {block for step in steps for request in step.requests for block in request.blocks}
    assert blocks == {1, 20, 39}
    slots = torch.cat([step.slots for step in steps])
    assert slots.max() == 40 * 16 - 1
    assert {"prefill", "chunk", "decode"} == {request.case for request in steps[-1].requests}
    # A chunk crosses the border of two blocks.
    assert any(r.start < 16 < r.end for r in steps[-1].requests)


def swapped(step):
    return replace(step, block_table=step.block_table.flip(1).contiguous())


def shorter(step):
    decodes = step.query_start_loc.diff() == 1
    return replace(step, seq_lens=step.seq_lens - (decodes & (step.seq_lens > 1)).int())


def shifted(step):
    return replace(step, slot_mapping=step.slot_mapping - 1)


def last_is_lost(step):
    slots = step.slot_mapping.clone()
    slots[-1] = -1
    return replace(step, slot_mapping=slots)


def one_head_is_zero(out):
    out[:, -16:] = 0
    return out


def one_number_is_none(out):
    out[-1, 3] = torch.nan
    return out


FAULTS = {
    "scale": lambda layer: ({"scale": layer.scale * 1.3}, {}),
    "frequencies": lambda layer: ({"inv_freq": layer.inv_freq * 1.05}, {}),
    "no rotation": lambda layer: ({"inv_freq": layer.inv_freq * 0}, {}),
    "groups": lambda layer: ({"w_uk": layer.w_uk.flip(0)}, {}),
    "values": lambda layer: ({"w_uv": layer.w_uv.flip(0)}, {}),
    "blocks": lambda layer: ({"cache": layer.cache.flip(0)}, {}),
    "swapped blocks": lambda _: ({}, {"change_batch": swapped}),
    "lengths": lambda _: ({}, {"change_batch": shorter}),
    "rows": lambda _: ({}, {"change_batch": shifted}),
    "a lost row": lambda _: ({}, {"change_batch": last_is_lost}),
    "a head": lambda _: ({}, {"change_out": one_head_is_zero}),
    "no number": lambda _: ({}, {"change_out": one_number_is_none}),
}
CODED_FAULTS = {
    "mean": lambda coded: replace(coded, rotary_mean=-coded.rotary_mean),
    "first row": lambda coded: replace(coded, first_row=0 * coded.first_row),
    "bits": lambda coded: replace(coded, code=RowCode(CODE.widths, (4, 6, *BITS[2:]))),
}
FAR = 4
"""A fault is at least so many times the bound."""


@each_kind
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_far_beyond_the_bound(fault, coded, dtype):
    layer = subject(BEST, coded, dtype)
    changes, arguments = FAULTS[fault](layer)
    mismatch = check(layer, computing(replace(layer, **changes), BEST, **arguments))
    assert mismatch is not None
    assert mismatch.error > FAR * mismatch.allowed, mismatch


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fault", CODED_FAULTS)
def test_a_fault_in_coded_rows_is_far_beyond_the_bound(fault, dtype):
    layer = subject(BEST, True, dtype)
    other = replace(layer, coded=CODED_FAULTS[fault](layer.coded))
    mismatch = check(layer, computing(other, BEST))
    assert mismatch is not None
    assert mismatch.error > FAR * mismatch.allowed, mismatch


def test_a_scale_on_the_border_between_two_may_get_either():
    """Few bits are so coarse that a row's error may then differ by more than a tenth."""
    code = RowCode(LatentWidths(96, 32), (*(1,) * 12, 6, 2, 6, 2))
    of = replace(
        subject("reference", True, torch.float32, widths=code.widths),
        coded=CodedRow(code, torch.zeros(32), torch.zeros(128)),
    )
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(2000, 128, generator=generator)
    gains = torch.tensor([codebook(bits).gain for bits in code.column_bits])
    for part in (slice(0, 96), slice(96, 128)):
        # k = 0.5, which float32 rounds to 0 or to 1.
        square = (rows[:, part] / gains[part]).square().mean(-1, keepdim=True)
        rows[:, part] *= 2 ** (0.5 / STEPS_PER_OCTAVE) / square.sqrt()
    positions = torch.ones(len(rows), dtype=torch.long)
    turned = apply_rotary(rows[:, 96:], *rotary_angles(positions, -of.inv_freq))
    for factor in (1 - 1e-6, 1 + 1e-6):
        stored = pack(code, *encode(code, factor * rows))
        nothing = torch.zeros_like(stored[:1])
        _, errors = Reference(of).rows(
            torch.cat((stored, nothing)), torch.cat((rows[:, :96], turned), dim=-1), positions
        )
        assert errors.max() < Reference(of).row_tolerance


def test_the_cache_is_as_it_was_after_a_mismatch_too():
    layer = subject(BEST, True, torch.bfloat16)
    before = layer.cache.clone()
    assert check(layer, computing(replace(layer, scale=1.0), BEST)) is not None
    assert torch.equal(layer.cache, before)
