"""Every kernel on coded rows, against the rows that ``coding`` says they are.

All kernels store the same bytes, so each is given bytes that the reference wrote, or the reference
reads what the kernel wrote.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_mha2mla.coding.codebooks import BITS
from vllm_mha2mla.coding.row_code import CodedRow, RowCode
from vllm_mha2mla.config import LatentWidths
from vllm_mha2mla.kernels import PagedBatch, build, cpu, reference
from vllm_mha2mla.kernels.coded_reference import CodedCache
from vllm_mha2mla.kernels.coded_structures import TABLE_ROWS, CodedLayer
from vllm_mha2mla.kernels.reference import ReferenceLayer

LIBRARY = build.library()
KERNELS = [cpu.CpuKernel(LIBRARY, isa) for isa in cpu.supported(LIBRARY)]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

each_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.isa)

# Outputs are means of latents of size 1. In float32 the order of sums differs, and the angles of
# rotary means by a rounding of each of two turns. bfloat16 rounds probabilities, outputs and
# decoded rows, each by 2^-9 at most; rows of some 150 columns move scores of size 2 by 0.01 or so.
# float16 is computed in float32, and outputs are rounded.
TOLERANCES = {torch.float32: 5e-5, torch.float16: 2e-3, torch.bfloat16: 3e-2}


@st.composite
def codes(draw):
    """Bits of rows of all widths: sorted as the converter writes them, or in any order."""
    latent = draw(st.lists(st.sampled_from(BITS), min_size=1, max_size=12))
    rotary = draw(st.lists(st.sampled_from(BITS), max_size=5))
    if draw(st.booleans()):
        latent.sort(reverse=True)
        rotary.sort(reverse=True)
    return RowCode(LatentWidths(8 * len(latent), 16 * len(rotary)), (*latent, *rotary, *rotary))


@st.composite
def batches(draw):
    """Requests of mixed kinds: (context length, new tokens), often at the borders of blocks."""
    border = st.sampled_from(
        [1, 7, 8, 9, 16, 17, 63, 64, 65, 96, 97, 127, 128, 129, 193, 255, 256, 257]
    )
    lengths = draw(st.lists(st.one_of(border, st.integers(1, 300)), min_size=1, max_size=4))
    new = [draw(st.sampled_from(sorted({0, 1, length // 2, length}))) for length in lengths]
    if not any(new):
        new[0] = 1
    return list(zip(lengths, new, strict=True))


block_sizes = st.sampled_from([8, 16, 48, 128])


class Coded:
    """A batch over a cache of coded rows in shuffled blocks; what nobody owns is garbage."""

    def __init__(self, code, batch, block_size, seed):
        self.generator = torch.Generator().manual_seed(seed)
        self.code, self.block_size = code, block_size
        width, rope = 8 * len(code.unit_bits), code.widths.qk_rope_head_dim
        per_request = [-(-length // block_size) for length, _ in batch]
        blocks = torch.randperm(sum(per_request) + 2, generator=self.generator).int()
        self.table = torch.full((len(batch), max(per_request) + 1), -7, dtype=torch.int32)
        size = (len(blocks), block_size, code.row_bytes)
        self.cache = torch.randint(256, size, generator=self.generator).to(torch.uint8)
        # Pairs of several heads have the same frequencies.
        frequencies = torch.rand(4, generator=self.generator)
        self.inv_freq = frequencies[torch.randint(4, (rope // 2,), generator=self.generator)]
        self.coded = CodedRow(code, self.random(rope), self.random(width))
        used = 0
        for index, (length, _) in enumerate(batch):
            own = blocks[used : used + per_request[index]]
            used += per_request[index]
            self.table[index, : len(own)] = own
            rows, n = self.random(length, width), torch.arange(length)
            rows[0] += self.coded.first_row
            self.reader(self.cache).write(rows, n, self.slots(index, n))
        self.lengths = torch.tensor([length for length, _ in batch], dtype=torch.int32)
        new = torch.tensor([0, *(new for _, new in batch)], dtype=torch.int32)
        self.starts = new.cumsum(0, dtype=torch.int32)
        self.positions = torch.cat([torch.arange(length - new, length) for length, new in batch])

    def random(self, *size):
        return torch.randn(size, generator=self.generator)

    def slots(self, request, positions):
        blocks = self.table[request, positions // self.block_size].long()
        return blocks * self.block_size + positions % self.block_size

    def new_slots(self):
        requests = torch.repeat_interleave(torch.arange(len(self.lengths)), self.starts.diff())
        return self.slots(requests, self.positions)

    def reader(self, cache):
        return CodedCache(cache, self.coded, self.inv_freq)

    def attend(self, query, kernel=None):
        out = query.new_full((*query.shape[:2], self.code.widths.kv_lora_rank), float("nan"))
        arguments = (query, self.cache, self.table, self.starts, self.lengths, 0.2, out)
        if kernel is None:
            reference.latent_attention(*arguments, self.reader(self.cache).rows)
        else:
            kernel.latent_attention(*arguments, CodedLayer(self.coded, self.inv_freq))
        return out.double()


@each_kernel
@settings(max_examples=15)
@given(
    code=codes(),
    batch=batches(),
    block_size=block_sizes,
    heads=st.one_of(st.integers(1, 20), st.sampled_from([9, 27, 36, 37])),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**16),
)
def test_attention_over_coded_rows(kernel, code, batch, block_size, heads, dtype, seed):
    paged = Coded(code, batch, block_size, seed)
    query = paged.random(len(paged.positions), heads, 8 * len(code.unit_bits)).to(dtype)
    expected = paged.attend(query.double().float())
    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(
        paged.attend(query, kernel), expected, atol=4 * tolerance, rtol=tolerance
    )


@each_kernel
@pytest.mark.parametrize("rope", [16, 176])
def test_long_contexts(kernel, rope):
    """Contexts go on behind the positions whose angles are tabulated."""
    lengths = (TABLE_ROWS - 1, TABLE_ROWS, TABLE_ROWS + 1, 2 * TABLE_ROWS + 300)
    units = rope // 16
    code = RowCode(LatentWidths(40, rope), (6, 4, 4, 3, 1, *(2 * ([4] * units))))
    paged = Coded(code, [(length, 1) for length in lengths], 128, seed=3)
    paged.inv_freq = torch.logspace(0, -4, rope // 2)
    query = paged.random(len(lengths), 9, 40 + rope).to(torch.bfloat16)
    expected = paged.attend(query.double().float())
    torch.testing.assert_close(paged.attend(query, kernel), expected, atol=0.12, rtol=3e-2)


@each_kernel
@settings(max_examples=15)
@given(
    code=codes(),
    batch=batches(),
    block_size=block_sizes,
    nope=st.integers(1, 20),
    v=st.integers(1, 40),
    group=st.integers(1, 3),
    dtype=st.sampled_from(DTYPES),
    padding=st.integers(0, 3),
    seed=st.integers(0, 2**16),
)
def test_layer_is_the_reference(
    kernel, code, batch, block_size, nope, v, group, dtype, padding, seed
):
    paged = Coded(code, batch, block_size, seed)
    rank, rope, heads = code.widths.kv_lora_rank, code.widths.qk_rope_head_dim, 3 * group
    tokens = len(paged.positions)
    query = paged.random(tokens + padding, heads * (nope + rope)).to(dtype)
    rows = paged.random(tokens + padding, rank + rope + 1)[:, :-1].to(dtype)
    weights = (paged.random(3, nope + v, rank) / rank**0.5).to(dtype)
    positions = torch.cat((paged.positions, paged.positions.new_zeros(padding)))
    slots = paged.new_slots()
    slots[0] = -1  # padding; the row that is there already stays

    def run(make, cache, slots):
        out = query.new_zeros(tokens + padding, heads * v)
        step = PagedBatch(tokens, paged.starts, paged.lengths, paged.table, slots)
        layer = make(
            cache, weights[:, :nope], weights[:, nope:], paged.inv_freq, 0.1, heads, paged.coded
        )
        layer(query, rows, positions, step, out)
        return out.double()

    cache, expected_cache = paged.cache.clone(), paged.cache.clone()
    out = run(kernel.layer, cache, slots)
    # The reference reads what the kernel wrote.
    expected = run(ReferenceLayer, cache.clone(), torch.full_like(slots, -1))
    tolerance = 8 * TOLERANCES[dtype]
    torch.testing.assert_close(out, expected, atol=tolerance, rtol=tolerance)
    run(ReferenceLayer, expected_cache, slots)
    # A number next to a border falls to either side, as sines and cosines are rounded.
    assert (cache != expected_cache).sum() <= 2 + cache.numel() // 500


@each_kernel
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_are_coded_as_the_reference_codes(kernel, dtype):
    code = RowCode(LatentWidths(48, 32), (8, 6, 4, 3, 2, 1, 8, 3, 8, 3))
    layer = CodedLayer(CodedRow(code, torch.zeros(32), torch.zeros(80)), torch.ones(16))
    generator = torch.Generator().manual_seed(5)
    rows = torch.randn(256, 80, generator=generator)
    rows = (rows * torch.logspace(-8, 8, 256)[:, None]).to(dtype)
    rows[7] = 0
    rows[8, 3] = 1e4
    slots = torch.randperm(300, generator=generator)[:256]
    slots[5] = -1
    cache = torch.randint(256, (300 // 20, 24, code.row_bytes)).to(torch.uint8)
    slots = torch.where(slots < 0, slots, slots // 20 * 24 + slots % 20)
    expected = cache.clone()
    CodedCache(expected, CodedRow(code, torch.zeros(32), torch.zeros(80)), torch.ones(16)).write(
        rows, torch.ones(256), slots
    )
    kernel.write_latents(cache, rows, slots, layer)
    assert torch.equal(cache, expected)


@each_kernel
def test_threads_write_only_their_own_bytes(kernel):
    """Rows of one group of bytes are written by several threads at once."""
    code = RowCode(LatentWidths(24, 16), (6, 3, 1, 4, 4))
    paged = Coded(code, [(3000, 3000)], 48, seed=1)
    rows = paged.random(3000, 40)
    step = PagedBatch(3000, paged.starts, paged.lengths, paged.table, paged.new_slots())
    weights = torch.ones(1, 1, 24)
    caches = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 5):
            torch.set_num_threads(threads)
            cache, out = paged.cache.clone(), torch.empty(3000, 1)
            layer = kernel.layer(cache, weights, weights, paged.inv_freq, 0.1, 1, paged.coded)
            layer(paged.random(3000, 17), rows, paged.positions, step, out)
            caches.append(cache)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*caches)
