"""The GPU layer against the reference; without a GPU, FlashAttention is a dense formulation."""

from dataclasses import fields

import pytest
import torch

pytest.importorskip("triton")

from tests.support import dense_flash
from tests.unit.vllm_mha2mla.kernels.cuda.paged import DEVICE
from vllm_mha2mla.kernels.cuda import flash, warm_up
from vllm_mha2mla.kernels.cuda.batch import CudaBatch
from vllm_mha2mla.kernels.cuda.choose import Ways
from vllm_mha2mla.kernels.cuda.expanded import Expansion
from vllm_mha2mla.kernels.cuda.layer import CudaLayer
from vllm_mha2mla.kernels.cuda.plan import Shape
from vllm_mha2mla.kernels.reference import ReferenceLayer

BLOCK, V, NOPE = 16, 16, 24
# Requests: context with the new tokens, and these. Decodes lead.
DECODES = [(1, 1), (17, 1), (40, 1)]
PREFILLS = [(33, 33), (50, 20), (5, 4)]
# Rounding a query, a latent, a probability and an output to float16, each 2^-11 of sums of size 4.
# Not bfloat16, which Triton's interpreter multiplies as integers.
TOLERANCE = 8e-3


@pytest.fixture(autouse=True)
def dense(monkeypatch):
    if DEVICE == "cpu":
        monkeypatch.setattr(flash, "varlen_attention", lambda: dense_flash.flash_attn_varlen_func)
        monkeypatch.setattr(flash, "scheduler", lambda: lambda **_: None)


def skip_versions_that_are_not_here(version):
    if DEVICE == "cuda" and version != flash.version_of(64, 64):
        pytest.skip(f"vLLM does not choose FlashAttention {version} here")


class Case:
    """One layer's weights, a batch, and what the reference makes of it."""

    def __init__(
        self, requests, widths, heads, groups, padding=0, dtype=torch.float16, block=BLOCK
    ):
        generator = torch.Generator().manual_seed(0)
        self.rank, self.rope = widths
        self.heads, self.groups, self.dtype = heads, groups, dtype
        row = -(-sum(widths) // 8) * 8

        def random(*size, scale=1.0):
            return (torch.randn(size, generator=generator) * scale).to(dtype)

        lengths = torch.tensor([length for length, _ in requests], dtype=torch.int32)
        new = torch.tensor([count for _, count in requests])
        counts = [-(-length // block) for length, _ in requests]
        table = torch.full((len(requests), max(counts) + 1), -1, dtype=torch.int32)
        blocks = torch.randperm(sum(counts) + 1, generator=generator, dtype=torch.int32)
        for request, own in enumerate(blocks.split([*counts, 1])[:-1]):
            table[request, : len(own)] = own
        # Blocks further apart than they are long, as layers of other widths make them.
        self.cache = random(len(blocks), block + 3, row)[:, :block]
        # Unused columns and rows hold garbage.
        self.cache[..., sum(widths) :] = float("nan")
        starts = torch.tensor([0, *new.tolist()]).cumsum(0).to(torch.int32)
        positions = torch.cat([torch.arange(n - k, n) for n, k in requests])
        owner = torch.repeat_interleave(torch.arange(len(requests)), new)
        slots = table[owner, positions // block].long() * block + positions % block
        # Contexts that an earlier step has cached.
        for request, (length, _) in enumerate(requests):
            place = torch.arange(length)
            where = table[request, place // block].long(), place % block
            self.cache[where] = torch.nn.functional.pad(
                random(length, sum(widths)), (0, row - sum(widths))
            )
        tokens = int(new.sum())
        self.tokens = tokens
        self.query = random(tokens + padding, heads * (NOPE + self.rope))
        self.rows = random(tokens + padding, sum(widths))
        self.w_uk = random(groups, NOPE + V, self.rank, scale=self.rank**-0.5)[:, :NOPE]
        self.w_uv = random(groups, NOPE + V, self.rank, scale=self.rank**-0.5)[:, NOPE:]
        self.inv_freq = torch.rand(self.rope // 2, generator=generator)
        self.positions = torch.cat((positions, positions.new_zeros(padding)))
        slots = torch.cat((slots, slots.new_full((padding,), -1)))
        decodes = sum(1 for _, k in requests if k == 1)
        self.batch = CudaBatch(
            num_tokens=tokens,
            query_start_loc=starts,
            seq_lens=lengths,
            block_table=table,
            slot_mapping=slots,
            max_query_len=int(new.max()),
            max_seq_len=int(lengths.max()) + 7,
            decodes=decodes,
            decode_tokens=decodes,
            decode_query_len=1,
            prefills=[(k, n) for n, k in requests[decodes:]],
        )

    def expected(self):
        cache = self.cache[..., : self.rank + self.rope].float().clone()
        out = self.query.new_zeros(len(self.query), self.heads * V).float()
        layer = ReferenceLayer(
            cache,
            self.w_uk.float(),
            self.w_uv.float(),
            self.inv_freq,
            0.1,
            self.heads,
        )
        layer(self.query.float(), self.rows.float(), self.positions, self.batch, out)
        return out, cache

    def shape(self, version):
        return Shape(
            heads=self.heads,
            groups=self.groups,
            nope=NOPE,
            rope=self.rope,
            v=V,
            rank=self.rank,
            pair=10**9,
            value=flash.value_width(NOPE + self.rope, V, version),
        )

    def check(self, way, version=3, numbers=0, shape=None):
        if way != "triton":
            skip_versions_that_are_not_here(version)
        expected, expected_cache = self.expected()
        self.move()
        expansion = None
        if numbers:
            shape = shape or self.shape(version)
            expansion = Expansion(self.cache, self.w_uk, self.w_uv, shape, 0.1, version, numbers)
        layer = CudaLayer(
            self.cache,
            self.w_uk,
            self.w_uv,
            self.inv_freq,
            0.1,
            self.heads,
            Ways(way, way),
            version,
            expansion,
        )
        out = self.query.new_zeros(len(self.query), self.heads * V)
        layer(self.query, self.rows, self.positions, self.batch, out)
        torch.testing.assert_close(out.cpu().float(), expected, atol=TOLERANCE, rtol=TOLERANCE)
        written = self.batch.slot_mapping[: self.tokens].cpu()
        where = written // self.cache.shape[1], written % self.cache.shape[1]
        width = self.rank + self.rope
        rows = self.cache.cpu()[where].float()
        expected_rows = expected_cache[where]
        torch.testing.assert_close(rows[:, :width], expected_rows, atol=TOLERANCE, rtol=TOLERANCE)
        assert rows[:, width:].eq(0).all()
        return layer

    def move(self):
        """Put everything where the kernels run; the cache keeps its gaps."""
        for owner, names in (
            (self, ("query", "rows", "positions", "w_uk", "w_uv", "inv_freq")),
            (self.batch, [field.name for field in fields(self.batch)]),
        ):
            for name in names:
                value = getattr(owner, name)
                if isinstance(value, torch.Tensor):
                    setattr(owner, name, value.to(DEVICE))
        whole = torch.empty(self.cache.stride(0) * len(self.cache), dtype=self.dtype, device=DEVICE)
        self.cache = whole.as_strided(self.cache.shape, self.cache.stride()).copy_(self.cache)


each_grouping = pytest.mark.parametrize(("heads", "groups"), [(4, 1), (4, 2), (3, 3)])


@each_grouping
@pytest.mark.parametrize("way", ["flash", "triton"])
def test_decode_and_prefill_absorbed(way, heads, groups):
    Case(DECODES + PREFILLS, (40, 8), heads, groups).check(way)


@pytest.mark.parametrize("way", ["flash", "triton"])
def test_rows_are_padded(way):
    Case(DECODES + PREFILLS, (37, 6), 4, 2).check(way)


@pytest.mark.parametrize("widths", [(256, 64), (512, 64), (296, 40)])
def test_rotary_and_latent_columns_apart(widths):
    Case([(20, 1), (9, 5)], widths, 2, 1).check("flash_split")


@pytest.mark.parametrize("widths", [(192, 64), (448, 64), (289, 6), (320, 0)])
def test_rows_as_values_that_are_scored(widths):
    Case([(20, 1), (9, 5)], widths, 2, 1).check("flash_whole")


@pytest.mark.parametrize("way", ["flash", "triton"])
def test_tokens_that_pad_a_graph_are_left_alone(way):
    Case(DECODES, (40, 8), 4, 2, padding=2).check(way)


@each_grouping
@pytest.mark.parametrize("version", [2, 3, 4])
def test_prefills_expanded_beside_decodes(version, heads, groups):
    Case(DECODES + PREFILLS, (40, 8), heads, groups).check("flash", version, numbers=10**6)


def test_no_rotary_columns():
    Case(DECODES + PREFILLS, (40, 0), 4, 2).check("flash", numbers=10**6)


def test_prefills_expanded_in_a_workspace_for_one_group_at_a_time():
    case = Case(DECODES + PREFILLS, (40, 8), 6, 3)
    shape = case.shape(3)
    numbers = shape.numbers(50, 2)  # the longest context, two of three groups
    layer = case.check("flash", 3, numbers)
    plan = layer.expansion.plan(case.batch)
    assert [part.piece.groups for part in plan] == [3, 2, 3]


def test_a_prefix_that_another_request_of_the_batch_fills():
    """A decode's slot may lie in a block that a prefill of the same step reads."""
    case = Case([(17, 1), (33, 33)], (40, 8), 4, 2)
    case.batch.block_table[0, 0] = case.batch.block_table[1, 0]
    case.check("flash", numbers=10**6)


@pytest.mark.parametrize("way", ["flash", "triton"])
def test_warming_up_computes_every_kind_of_batch_and_writes_nothing(monkeypatch, way):
    monkeypatch.setattr(warm_up, "DECODES", (1, 3))
    monkeypatch.setattr(warm_up, "PREFILLS", (2, 5))
    case = Case([(20, 1)], (40, 8), 4, 2)
    case.cache.zero_()
    case.move()
    shape = case.shape(3)
    expansion = Expansion(case.cache, case.w_uk, case.w_uv, shape, 0.1, 3, 10**6)
    weights = (case.w_uk, case.w_uv, case.inv_freq, 0.1, case.heads)
    layer = CudaLayer(case.cache, *weights, Ways(way, way), 3, expansion)
    warm_up.warm_up(layer, 100)
    assert case.cache.eq(0).all()
