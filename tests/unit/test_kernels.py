"""The kernels against a formulation that knows nothing of pages: one softmax per query."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_mha2mla.kernels import latent_attention, write_latents


@st.composite
def batches(draw):
    """Requests of mixed kinds: (context length, new tokens)."""
    count = draw(st.integers(1, 4))
    lengths = [draw(st.integers(1, 70)) for _ in range(count)]
    return [(length, draw(st.integers(1, length))) for length in lengths]


@settings(max_examples=60, deadline=None)
@given(
    batch=batches(),
    block_size=st.sampled_from([1, 4, 16, 33]),
    heads=st.integers(1, 5),
    rank=st.integers(1, 20),
    rope=st.sampled_from([0, 2, 6]),
    large=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_paged_attention_is_attention(batch, block_size, heads, rank, rope, large, seed):
    generator = torch.Generator().manual_seed(seed)
    width, scale = rank + rope, 0.3
    size = 100.0 if large else 1.0

    per_request = [-(-length // block_size) for length, _ in batch]
    blocks = torch.randperm(sum(per_request) + 2, generator=generator)
    table = torch.zeros(len(batch), max(per_request), dtype=torch.int32)
    # Rows nobody owns hold garbage, as recycled blocks do.
    cache = torch.full((len(blocks), block_size, width), float("nan"))
    queries, expected, used = [], [], 0
    for index, (length, new) in enumerate(batch):
        rows = torch.randn(length, width, generator=generator)
        own = blocks[used : used + per_request[index]]
        used += per_request[index]
        table[index, : len(own)] = own
        slots = own[torch.arange(length) // block_size] * block_size
        write_latents(cache, rows, slots + torch.arange(length) % block_size)
        query = torch.randn(new, heads, width, generator=generator) * size
        queries.append(query)
        for t in range(new):
            visible = rows[: length - new + t + 1].double()
            weights = (query[t].double() @ visible.T * scale).softmax(-1)
            expected.append(weights @ visible[:, :rank])
    starts = torch.tensor([0, *(new for _, new in batch)]).cumsum(0)
    query = torch.cat(queries)
    out = torch.empty(len(query), heads, rank)
    lengths = torch.tensor([length for length, _ in batch])
    latent_attention(query, cache, table, starts, lengths, scale, out)
    # Scores reach some hundreds when large: float32 keeps those to 1e-5 relative, and softmax
    # turns an absolute error of a score into a relative one of a weight.
    torch.testing.assert_close(
        out.double(), torch.stack(expected), atol=2e-3 if large else 1e-5, rtol=1e-3
    )


def test_long_prompts_are_attended_in_chunks():
    torch.manual_seed(1)
    tokens, heads, rank, rope, block = 600, 2, 6, 2, 16
    rows = torch.randn(tokens, rank + rope)
    cache = torch.zeros(-(-tokens // block), block, rank + rope)
    write_latents(cache, rows, torch.arange(tokens))
    query = torch.randn(tokens, heads, rank + rope)
    table = torch.arange(len(cache), dtype=torch.int32)[None]
    out = torch.empty(tokens, heads, rank)
    latent_attention(query, cache, table, torch.tensor([0, tokens]), torch.tensor([tokens]), 1, out)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query.transpose(0, 1)[None],
        rows[None, None].expand(1, heads, -1, -1),
        rows[None, None, :, :rank].expand(1, heads, -1, -1),
        is_causal=True,
        scale=1,
    )[0].transpose(0, 1)
    # float32 sums of up to 600 terms in another order.
    torch.testing.assert_close(out, expected, atol=1e-4, rtol=1e-4)


def test_padding_slots_are_not_written():
    cache = torch.zeros(2, 4, 3)
    write_latents(cache, torch.ones(3, 3), torch.tensor([5, -1, 2]))
    assert cache.flatten(0, 1)[[5, 2]].eq(1).all()
    assert cache.sum() == 6
