import pytest
import torch

from tests.unit.vllm_mha2mla.kernels.cuda.paged import DEVICE
from vllm_mha2mla.kernels.cuda.rotate import rotate_and_write
from vllm_mha2mla.kernels.reference import write_latents
from vllm_mha2mla.rope import apply_rotary, rotary_angles

# One rounding to the dtype; Triton's interpreter cuts bfloat16 off where a GPU rounds.
ROUNDING = {torch.float32: 1e-6, torch.float16: 2**-10, torch.bfloat16: 2**-7}


def step(dtype, heads=3, nope=5, rank=11, rope=6, padding=3, top=4000):
    """A step of 7 tokens, the third of them padding, and what it must leave."""
    generator = torch.Generator().manual_seed(0)
    tokens, width = 7, rank + rope + padding
    query = torch.randn(tokens, heads * (nope + rope), generator=generator).to(dtype)
    kv_latent = torch.randn(tokens, rank + rope, generator=generator).to(dtype)
    positions = torch.randint(top, (tokens,), generator=generator)
    slots = torch.randperm(48, generator=generator)[:tokens]
    slots[2] = -1
    inv_freq = 10000.0 ** -(torch.arange(rope // 2) / max(1, rope // 2))
    storage = torch.full((3, 16, width + 5), 9.0, dtype=dtype)  # rows further apart than long
    cos, sin = rotary_angles(positions, inv_freq)
    k_rope = apply_rotary(kv_latent[:, rank:], cos, sin)
    rows = torch.cat((kv_latent[:, :rank], k_rope, torch.zeros(tokens, padding)), dim=-1)
    expected_cache = storage.clone()
    write_latents(expected_cache[..., :width], rows, slots)
    q_rope = query.view(tokens, heads, -1)[..., nope:]
    expected_query = torch.full((tokens, heads, width), 9.0)
    expected_query[..., rank : rank + rope] = apply_rotary(
        q_rope, cos.unsqueeze(1), sin.unsqueeze(1)
    )
    expected_query[..., rank + rope :] = 0

    q_out = torch.full((tokens, heads, width), 9.0, dtype=dtype, device=DEVICE)
    storage = storage.to(DEVICE)
    moved = (t.to(DEVICE) for t in (query, kv_latent, positions, slots, inv_freq))
    rotate_and_write(*moved, q_out, storage[..., :width], nope, rank)
    return (storage.cpu(), expected_cache), (q_out.cpu().float(), expected_query)


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize(
    "sizes",
    [{}, {"rope": 0}, {"padding": 0}, {"heads": 33}, {"rank": 1, "rope": 2}, {"nope": 0}],
    ids=str,
)
def test_rows_and_queries_are_turned_and_the_rest_left_alone(dtype, sizes):
    for got, expected in step(dtype, **sizes):
        torch.testing.assert_close(got, expected, atol=ROUNDING[dtype], rtol=ROUNDING[dtype])


def test_angles_of_a_million_positions_are_float32_angles():
    for got, expected in step(torch.float32, top=2**20):
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("rank", [2, 11])
def test_queries_are_turned_in_place(rank):
    heads, nope, rope, tokens = 3, 5, 6, 4
    generator = torch.Generator().manual_seed(1)
    query = torch.randn(tokens, heads * (nope + rope), generator=generator)
    positions = torch.arange(tokens)
    inv_freq = torch.rand(rope // 2, generator=generator)
    by_head = query.view(tokens, heads, -1)
    cos, sin = (t.unsqueeze(1) for t in rotary_angles(positions, inv_freq))
    turned = apply_rotary(by_head[..., nope:], cos, sin)
    expected = torch.cat((by_head[..., :nope], turned), dim=-1)

    query, positions, inv_freq = (t.to(DEVICE) for t in (query, positions, inv_freq))
    rows, slots = torch.zeros(tokens, rank + rope, device=DEVICE), positions
    cache = torch.zeros(1, tokens, rank + rope, device=DEVICE)
    target = query.view(tokens, heads, -1)
    rotate_and_write(query, rows, positions, slots, inv_freq, target, cache, nope, rank, nope)
    torch.testing.assert_close(target.cpu(), expected, atol=1e-6, rtol=1e-6)
