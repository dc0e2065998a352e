"""The GPU layer over coded rows against the reference's; FlashAttention is a dense formulation."""

from dataclasses import fields

import pytest
import torch

pytest.importorskip("triton")

from tests.support import dense_flash
from tests.unit.vllm_mha2mla.kernels.cuda.paged import DEVICE
from vllm_mha2mla.coding.row_code import CodedRow, RowCode
from vllm_mha2mla.config import LatentWidths
from vllm_mha2mla.kernels.coded_reference import CodedCache
from vllm_mha2mla.kernels.cuda import flash, warm_up
from vllm_mha2mla.kernels.cuda.batch import CudaBatch
from vllm_mha2mla.kernels.cuda.choose import Ways
from vllm_mha2mla.kernels.cuda.coded_tables import coded_tables
from vllm_mha2mla.kernels.cuda.expanded import Expansion
from vllm_mha2mla.kernels.cuda.kernel import CudaKernel, Heads, Limits
from vllm_mha2mla.kernels.cuda.layer import CudaLayer
from vllm_mha2mla.kernels.cuda.plan import Shape
from vllm_mha2mla.kernels.reference import ReferenceLayer

BLOCK, NOPE, V, HEADS, GROUPS, SCALE = 16, 24, 16, 4, 2, 0.1
# Requests: context with the new tokens, and these. Decodes lead.
DECODES = [(1, 1), (17, 1), (70, 1)]
PREFILLS = [(17, 17), (40, 2)]
# Rounding queries, weights, keys and outputs to float16, each 2^-11 of sums of size 8; in float32
# the order of sums, and the angles of a position in two parts. Not bfloat16, which Triton's
# interpreter multiplies as integers.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 3e-2}

# Every number of bits; pairs of codes at once behind wider ones; no rotary part; wide rows.
MIXED = ((40, 32), (8, 6, 4, 3, 1, 6, 2, 6, 2))
NARROW = ((24, 16), (4, 3, 1, 2, 2))
LATENT_ONLY = ((16, 0), (6, 3))
LATER_PAIRS = ((136, 48), (8, 6, *[4] * 5, *[3] * 5, *[2] * 5, 4, 3, 2, 4, 3, 2))


@pytest.fixture(autouse=True)
def dense(monkeypatch):
    if DEVICE == "cpu":
        monkeypatch.setattr(flash, "varlen_attention", lambda: dense_flash.flash_attn_varlen_func)
        monkeypatch.setattr(dense_flash, "DTYPES", [*dense_flash.DTYPES, torch.float32])


class Case:
    """One layer with coded rows, a batch, and the outputs and bytes that the reference leaves."""

    def __init__(self, requests, kind, dtype, padding=0, block=BLOCK):
        generator = torch.Generator().manual_seed(0)
        (self.rank, self.rope), bits = kind
        self.dtype, width = dtype, self.rank + self.rope

        def random(*size, scale=1.0):
            return torch.randn(size, generator=generator) * scale

        code = RowCode(LatentWidths(self.rank, self.rope), bits)
        self.coded = CodedRow(code, random(self.rope, scale=2), random(width, scale=3))
        self.inv_freq = torch.rand(self.rope // 2, generator=generator)
        lengths = torch.tensor([length for length, _ in requests], dtype=torch.int32)
        new = torch.tensor([count for _, count in requests])
        counts = [-(-length // block) for length, _ in requests]
        self.table = torch.full((len(requests), max(counts) + 1), -1, dtype=torch.int32)
        blocks = torch.randperm(sum(counts) + 1, generator=generator, dtype=torch.int32)
        for request, own in enumerate(blocks.split([*counts, 1])[:-1]):
            self.table[request, : len(own)] = own
        # What no row has been written to holds any bytes.
        size = (len(blocks), block, code.row_bytes)
        self.cache = torch.randint(256, size, generator=generator, dtype=torch.uint8)
        earlier = CodedCache(self.cache, self.coded, self.inv_freq)
        for request, (length, count) in enumerate(requests):
            n = torch.arange(length - count)
            slots = self.table[request, n // block].long() * block + n % block
            earlier.write(random(len(n), width), n, slots)
        positions = torch.cat([torch.arange(n - k, n) for n, k in requests])
        owner = torch.repeat_interleave(torch.arange(len(requests)), new)
        slots = self.table[owner, positions // block].long() * block + positions % block
        tokens = len(positions)
        self.query = random(tokens + padding, HEADS * (NOPE + self.rope)).to(dtype)
        self.rows = random(tokens + padding, width, scale=1.5).to(dtype)
        self.w_uk = random(GROUPS, NOPE, self.rank, scale=self.rank**-0.5).to(dtype)
        self.w_uv = random(GROUPS, V, self.rank, scale=self.rank**-0.5).to(dtype)
        self.positions = torch.nn.functional.pad(positions, (0, padding))
        decodes = sum(1 for _, k in requests if k == 1)
        self.batch = CudaBatch(
            num_tokens=tokens,
            query_start_loc=torch.tensor([0, *new.tolist()]).cumsum(0).int(),
            seq_lens=lengths,
            block_table=self.table,
            slot_mapping=torch.nn.functional.pad(slots, (0, padding), value=-1),
            max_query_len=int(new.max()),
            max_seq_len=int(lengths.max()) + 7,
            decodes=decodes,
            decode_tokens=decodes,
            decode_query_len=1,
            prefills=[(k, n) for n, k in requests[decodes:]],
        )

    def expected(self):
        """Outputs, and the cache with the new rows."""
        cache = self.cache.clone()
        out = torch.zeros(len(self.query), HEADS * V)
        weights = (self.w_uk.float(), self.w_uv.float(), self.inv_freq)
        layer = ReferenceLayer(cache, *weights, SCALE, HEADS, self.coded)
        layer(self.query.float(), self.rows.float(), self.positions, self.batch, out)
        return out, cache

    def layer(self, numbers=0):
        """The layer under test, everything where the kernels run."""
        for owner, names in (
            (self, ("query", "rows", "positions", "w_uk", "w_uv", "inv_freq", "cache")),
            (self.batch, [field.name for field in fields(self.batch)]),
        ):
            for name in names:
                value = getattr(owner, name)
                if isinstance(value, torch.Tensor):
                    setattr(owner, name, value.to(DEVICE))
        vectors = (self.coded.rotary_mean.to(DEVICE), self.coded.first_row.to(DEVICE))
        coded = CodedRow(self.coded.code, *vectors)
        tables = coded_tables(coded, self.inv_freq, self.dtype, 128)
        weights, expansion = (self.w_uk, self.w_uv), None
        if numbers:
            shape = Shape(
                *(HEADS, GROUPS, NOPE, self.rope, V, self.rank),
                pair=10**9,
                value=flash.value_width(NOPE + self.rope, V, 3),
            )
            expansion = Expansion(self.cache, *weights, shape, SCALE, 3, numbers, tables)
        ways = Ways("triton", "triton")
        arguments = (*weights, self.inv_freq, SCALE, HEADS, ways, None, expansion, tables)
        return CudaLayer(self.cache, *arguments)

    def check(self, numbers=0):
        expected, expected_cache = self.expected()
        layer = self.layer(numbers)
        out = self.query.new_zeros(len(self.query), HEADS * V)
        layer(self.query, self.rows, self.positions, self.batch, out)
        # A scale or a code on the border between two may fall to either side.
        changed = (self.cache.cpu() != expected_cache).sum()
        assert changed <= expected_cache.numel() // 1000
        tolerance = TOLERANCES[self.dtype]
        torch.testing.assert_close(out.cpu().float(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("kind", [MIXED, NARROW, LATENT_ONLY], ids=["mixed", "narrow", "latent"])
def test_decode_and_prefill_absorbed(kind, dtype):
    Case(DECODES + PREFILLS, kind, dtype).check()


def test_pieces_of_pairs_behind_one_of_wider_codes():
    Case(DECODES, LATER_PAIRS, torch.float16).check()


@pytest.mark.parametrize("kind", [MIXED, LATENT_ONLY], ids=["mixed", "latent"])
def test_prefills_expanded_beside_decodes(kind):
    Case(DECODES + PREFILLS, kind, torch.float16).check(numbers=10**6)


def test_blocks_longer_than_tiles_and_tokens_that_pad_a_graph():
    Case(DECODES, NARROW, torch.float16, padding=2, block=64).check()


def test_warming_up_computes_every_kind_of_batch_and_writes_nothing(monkeypatch):
    monkeypatch.setattr(warm_up, "DECODES", (1,))
    monkeypatch.setattr(warm_up, "PREFILLS", (2,))
    case = Case([(20, 1)], NARROW, torch.float16)
    before = case.cache.clone()
    warm_up.warm_up(case.layer(numbers=10**6), 100)
    assert case.cache.cpu().equal(before)


def test_exchanged_weights_reach_the_tables_of_captured_graphs():
    case = Case(DECODES, NARROW, torch.float16)
    code = case.coded.code
    heads = Heads(HEADS, GROUPS, NOPE, V)
    kernel = CudaKernel(code.widths, heads, case.dtype, "triton", Limits(64, 128), code)
    weights = (case.cache, case.w_uk, case.w_uv)
    first = kernel.layer(*weights, case.inv_freq, SCALE, HEADS, case.coded).tables
    assert first is not None
    other = CodedRow(code, case.coded.rotary_mean + 1, case.coded.first_row + 1)
    again = kernel.layer(*weights, case.inv_freq / 2, SCALE, HEADS, other).tables
    assert again is first
    expected = coded_tables(other, case.inv_freq / 2, case.dtype, 128)
    for name in ("first_row", "means", "turns"):
        assert torch.equal(getattr(first, name), getattr(expected, name))
