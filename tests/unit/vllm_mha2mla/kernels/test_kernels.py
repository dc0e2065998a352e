"""Every kernel against a formulation that knows nothing of pages: one softmax per query."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_mha2mla.kernels import PagedBatch, build, cpu, paired, reference
from vllm_mha2mla.kernels.reference import ReferenceLayer

LIBRARY = build.library()
# Every instruction set this machine has; the reference itself is held to the same tests.
KERNELS = {"reference": reference} | {
    isa: cpu.CpuKernel(LIBRARY, isa) for isa in cpu.supported(LIBRARY)
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

each_kernel = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS.keys())
each_compiled = pytest.mark.parametrize(
    "kernel", [k for k in KERNELS.values() if k is not reference], ids=lambda kernel: kernel.isa
)

# Each output is a mean of latents of size 1. Rounding a probability or an output to bfloat16 is
# off by 2^-9 of it; to float16, 2^-12. In float32 only the order of sums differs.
TOLERANCES = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
# Scores of some hundreds: float32 keeps those to 1e-5 relative, and softmax turns an absolute
# error of a score into a relative one of a weight.
LARGE_TOLERANCE = 2e-3


def in_rows(kernel, cache):
    """A copy of a kernel's cache with rows as rows  # [blocks, block_size, width]"""
    if not paired.in_pairs(getattr(kernel, "isa", None), cache):
        return cache.clone()
    return paired.in_rows(cache)


@st.composite
def batches(draw):
    """Requests of mixed kinds: (context length, new tokens), often at the borders of blocks."""
    border = st.sampled_from([1, 15, 16, 17, 32, 33, 95, 96, 97, 128, 192, 193])
    lengths = draw(st.lists(st.one_of(border, st.integers(1, 230)), min_size=1, max_size=4))
    new = [draw(st.sampled_from(sorted({0, 1, length // 2, length}))) for length in lengths]
    if not any(new):
        new[0] = 1
    return list(zip(lengths, new, strict=True))


class Paged:
    """A batch in a paged cache, in shuffled blocks, and what attention over it must be."""

    def __init__(self, kernel, batch, block_size, shape, dtypes, seed, size=1.0, gap=0):
        heads, rank, rope = shape
        cache_dtype, query_dtype = dtypes
        generator = torch.Generator().manual_seed(seed)
        self.kernel, self.rank, self.scale = kernel, rank, 0.3
        width = rank + rope
        per_request = [-(-length // block_size) for length, _ in batch]
        blocks = torch.randperm(sum(per_request) + 2, generator=generator, dtype=torch.int32)
        self.table = torch.full((len(batch), max(per_request) + 1), -7, dtype=torch.int32)
        # Blocks and rows further apart than they are long, as an engine may lay them out; and what
        # nobody owns, between rows and in them, holds garbage, as recycled blocks do.
        storage = torch.full(
            (len(blocks), block_size + gap, width + gap), float("nan"), dtype=cache_dtype
        )
        storage[::2] = float("-inf")
        self.cache = storage[:, :block_size, :width]
        self.query = torch.randn(sum(new for _, new in batch), heads, width, generator=generator)
        self.query = (self.query * size).to(query_dtype)
        self.rows, used = [], 0
        for index, (length, _) in enumerate(batch):
            own = blocks[used : used + per_request[index]]
            used += per_request[index]
            self.table[index, : len(own)] = own
            slots = own[torch.arange(length) // block_size].long() * block_size
            rows = torch.randn(length, width, generator=generator).to(query_dtype)
            kernel.write_latents(self.cache, rows, slots + torch.arange(length) % block_size)
            self.rows.append(rows.to(cache_dtype))
        self.lengths = torch.tensor([length for length, _ in batch], dtype=torch.int32)
        self.starts = torch.tensor([0, *(new for _, new in batch)], dtype=torch.int32).cumsum(
            0, dtype=torch.int32
        )

    def attend(self):
        out = self.query.new_full((*self.query.shape[:2], self.rank), float("nan"))
        self.kernel.latent_attention(
            self.query, self.cache, self.table, self.starts, self.lengths, self.scale, out
        )
        return out.double()

    def expected(self):
        outputs = []
        for rows, start, end in zip(self.rows, self.starts, self.starts[1:], strict=False):
            queries = self.query[start:end].double()
            for t, query in enumerate(queries):
                visible = rows[: len(rows) - len(queries) + t + 1].double()
                weights = (query @ visible.T * self.scale).softmax(-1)
                outputs.append(weights @ visible[:, : self.rank])
        return torch.stack(outputs)


# Heads on both sides of the limits of a register tile and of what is multiplied without packing.
shapes = st.tuples(
    st.one_of(st.integers(1, 20), st.sampled_from([9, 27, 36, 37])),
    st.one_of(st.integers(1, 70), st.integers(1, 35).map(lambda pairs: 2 * pairs)),
    st.sampled_from([0, 2, 6, 40]),
)


@each_kernel
@settings(max_examples=60)
@given(
    batch=batches(),
    block_size=st.sampled_from([1, 4, 7, 8, 16, 32, 33, 48, 128]),
    shape=shapes,
    dtypes=st.one_of(
        st.just((torch.bfloat16, torch.bfloat16)),
        st.tuples(st.sampled_from(DTYPES), st.sampled_from(DTYPES)),
    ),
    large=st.booleans(),
    gap=st.sampled_from([0, 3]),
    seed=st.integers(0, 2**16),
)
def test_paged_attention_is_attention(kernel, batch, block_size, shape, dtypes, large, gap, seed):
    paged = Paged(kernel, batch, block_size, shape, dtypes, seed, 100.0 if large else 1.0, gap)
    tolerance = max(TOLERANCES[dtypes[1]], LARGE_TOLERANCE if large else 0)
    # The largest of a row of latents is around 3, and its error grows with it.
    torch.testing.assert_close(paged.attend(), paged.expected(), atol=tolerance, rtol=tolerance)


@each_compiled
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_split_contexts_are_merged(kernel, threads, dtype):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        batch = [(3000, 1), (5, 1), (1111, 3), (700, 400)]
        paged = Paged(kernel, batch, 16, (3, 20, 4), (dtype, dtype), seed=threads)
        assert kernel.threads() == threads
        out = paged.attend()
    finally:
        torch.set_num_threads(before)
    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(out, paged.expected(), atol=tolerance, rtol=tolerance)


@each_kernel
@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_that_are_no_numbers(kernel, dtype):
    """A NaN reaches the queries that see it and no others; minus infinity takes no part."""
    paged = Paged(kernel, [(40, 20)], 16, (2, 8, 4), (dtype, dtype), seed=3)
    block, offset = divmod(30, 16)
    slot = paged.table[0, block].long() * 16 + offset
    row = in_rows(kernel, paged.cache).flatten(0, 1)[slot]
    assert torch.equal(row, paged.rows[0][30])
    row[8] = float("nan")  # a rotary column: in the scores, not in the values
    kernel.write_latents(paged.cache, row[None], slot[None])
    out = paged.attend()
    assert not out[:10].isnan().any()
    assert out[10:].isnan().all()

    paged.query[..., 8] = 1
    row[8] = float("-inf")
    kernel.write_latents(paged.cache, row[None], slot[None])
    paged.rows[0][30] = row
    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(paged.attend(), paged.expected(), atol=tolerance, rtol=tolerance)


@each_kernel
@pytest.mark.parametrize("rows_dtype", DTYPES)
@pytest.mark.parametrize("cache_dtype", DTYPES)
def test_rows_are_rounded_as_torch_rounds(kernel, rows_dtype, cache_dtype):
    # All finite float16 numbers, and what lies between and beyond them in the larger dtypes.
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int16)
    values = bits.view(torch.float16).float()
    extremes = torch.tensor([0.0, -0.0, 65519.9, 65520.0, 6e-8, 2e-8, 1e-40, 3e38, 1e5])
    values = torch.cat((values, values * 1.0003, values * 3.1e-3, extremes, -extremes))
    rows = values.to(rows_dtype)[: values.numel() // 7 * 7].view(-1, 7)
    cache = torch.zeros(1, len(rows), 7, dtype=cache_dtype)
    kernel.write_latents(cache, rows, torch.arange(len(rows)))
    torch.testing.assert_close(cache[0], rows.to(cache_dtype), atol=0, rtol=0, equal_nan=True)


@each_kernel
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("block_size", "width"), [(4, 3), (16, 12), (8, 40), (48, 7)])
def test_only_the_slots_of_new_rows_are_written(kernel, dtype, block_size, width):
    cache = torch.full((3, block_size, width), -7.0, dtype=dtype)
    slots = torch.tensor([block_size + 1, -1, 2, 3 * block_size - 1])
    rows = torch.arange(4 * width).view(4, width).to(dtype)
    kernel.write_latents(cache, rows, slots)
    expected = torch.full_like(cache, -7.0).flatten(0, 1)
    expected[slots[slots >= 0]] = rows[slots >= 0]
    assert torch.equal(in_rows(kernel, cache).flatten(0, 1), expected)


@each_kernel
@pytest.mark.parametrize("query_dtype", DTYPES)
@pytest.mark.parametrize(("block_size", "rank"), [(16, 8), (128, 26), (48, 13), (7, 16)])
def test_blocks_fill_row_by_row(kernel, query_dtype, block_size, rank):
    """Decoding: each row is written beside those that a block's last owner has left."""
    dtypes = (torch.bfloat16, query_dtype)
    paged = Paged(kernel, [(70, 1)], block_size, (9, rank, 2), dtypes, seed=rank)
    paged.cache.fill_(float("nan"))
    rows = paged.rows[0]
    slots = torch.arange(len(rows))
    slots = paged.table[0, slots // block_size].long() * block_size + slots % block_size
    tolerance = TOLERANCES[query_dtype]
    for length in range(1, len(rows) + 1):
        kernel.write_latents(paged.cache, rows[length - 1 : length], slots[length - 1 : length])
        paged.lengths[0] = length
        paged.rows[0] = rows[:length]
        torch.testing.assert_close(paged.attend(), paged.expected(), atol=tolerance, rtol=tolerance)


@each_compiled
def test_powers_of_two(kernel):
    x = -torch.cat((torch.linspace(0, 126, 200_001), torch.tensor([0.0, 1e-30, 0.5, 125.999])))
    # The polynomial's error is 7.5e-8, its five roundings and the result's add up to the rest.
    torch.testing.assert_close(kernel.exp2(x).double(), x.double().exp2(), rtol=3e-7, atol=0)
    ends = kernel.exp2(torch.tensor([-200.0, -3e38, -math.inf, math.nan]))
    assert ends[:3].eq(0).all()
    assert ends[3].isnan()


@each_compiled
@settings(max_examples=25)
@given(
    batch=batches(),
    block_size=st.sampled_from([16, 128, 7]),
    shape=shapes,
    nope=st.integers(1, 20),
    v=st.integers(1, 40),
    group=st.integers(1, 3),
    dtypes=st.sampled_from(
        [(dtype, dtype) for dtype in DTYPES] + [(torch.bfloat16, torch.float32)]
    ),
    padding=st.integers(0, 3),
    seed=st.integers(0, 2**16),
)
def test_layer_is_the_reference(
    kernel, batch, block_size, shape, nope, v, group, dtypes, padding, seed
):
    (groups, rank, rope), dtype = shape, dtypes[1]
    heads = groups * group
    shape = (heads, rank, rope)
    owners = {
        cls: Paged(owner, batch, block_size, shape, dtypes, seed)
        for cls, owner in ((ReferenceLayer, reference), (kernel.layer, kernel))
    }
    paged = owners[ReferenceLayer]
    generator = torch.Generator().manual_seed(seed)
    tokens = len(paged.query)
    positions = torch.cat([torch.arange(length - new, length) for length, new in batch])
    blocks = torch.repeat_interleave(paged.table, paged.starts.diff(), dim=0)
    slots = blocks.gather(1, positions[:, None] // block_size)[:, 0].long() * block_size
    slots = slots + positions % block_size
    slots[0] = -1  # padding; the row that is there already stays

    def random(*size):
        return torch.randn(size, generator=generator).to(dtype)

    query = random(tokens + padding, heads * (nope + rope) + 1)[:, :-1]
    rows = random(tokens + padding, rank + rope)
    weights = random(groups, nope + v, rank) / rank**0.5
    inv_freq = torch.rand(rope // 2, generator=generator)
    # Far out, where a rotation is lost unless its angle is as exact as the reference's.
    positions = torch.cat((positions * 1001, positions.new_zeros(padding)))
    results = []
    for cls, own in owners.items():
        cache, out = own.cache, query.new_zeros(tokens + padding, heads * v)
        step = PagedBatch(tokens, paged.starts, paged.lengths, paged.table, slots)
        layer = cls(cache, weights[:, :nope], weights[:, nope:], inv_freq, 0.1, heads)
        layer(query, rows, positions, step, out)
        results.append((out.double(), in_rows(own.kernel, cache)))
    (out, cache), (expected, expected_cache) = results[1], results[0]
    # Rows differ by a rounding of the cache's type where sine and cosine do, outputs by that of
    # queries and latents and of the probabilities; the sums over widths make outputs of size
    # sqrt(nope) or so.
    rounding = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[dtypes[0]]
    torch.testing.assert_close(cache, expected_cache, atol=rounding, rtol=rounding, equal_nan=True)
    torch.testing.assert_close(out, expected, atol=8 * rounding, rtol=8 * rounding)
