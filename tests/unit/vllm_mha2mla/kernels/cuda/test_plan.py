from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_mha2mla.kernels.cuda.plan import (
    LONGEST,
    Piece,
    Shape,
    expansion_is_cheaper,
    pieces,
    workspace_numbers,
)

# Llama-3-8B, 192+64 numbers a token.
LLAMA = Shape(heads=32, groups=8, nope=128, rope=64, v=128, rank=192, pair=512, value=128)


def test_long_prompts_are_expanded():
    assert expansion_is_cheaper(LLAMA, [(8192, 8192)])
    assert expansion_is_cheaper(LLAMA, [(8192, 16384)])
    assert expansion_is_cheaper(LLAMA, [(512, 512)] * 16)


def test_few_tokens_on_a_long_context_are_absorbed():
    assert not expansion_is_cheaper(LLAMA, [(4, 32768)])
    assert not expansion_is_cheaper(LLAMA, [(16, 32768)])


def test_up_projections_of_every_head_cost_more_to_expand():
    old = replace(LLAMA, groups=32)
    requests = [(400, 32768)]
    assert expansion_is_cheaper(LLAMA, requests)
    assert not expansion_is_cheaper(old, requests)


def test_a_step_of_new_tokens_fits_with_all_groups():
    numbers = workspace_numbers(LLAMA, 8192, 8192)
    assert pieces(LLAMA, [(1000, 1000), (7192, 7192)], numbers) == [Piece(0, 2, 8)]


def test_the_longest_request_fits_group_by_group():
    numbers = workspace_numbers(LLAMA, 2048, 131072)
    (piece,) = pieces(LLAMA, [(100, 131072)], numbers)
    assert piece == Piece(0, 1, 1)
    assert pieces(LLAMA, [(100, 2 * 131072)], numbers) is None


def test_workspace_does_not_grow_with_the_longest_contexts():
    numbers = workspace_numbers(LLAMA, 2048, 1 << 24)
    assert numbers == workspace_numbers(LLAMA, 2048, LONGEST)
    assert pieces(LLAMA, [(8192, LONGEST)], numbers) == [Piece(0, 1, 1)]
    assert pieces(LLAMA, [(8192, LONGEST + 8192)], numbers) is None


@given(
    lengths=st.lists(st.integers(0, 5000), min_size=1, max_size=9),
    tokens=st.integers(5000, 20000),
)
def test_pieces_cover_the_requests_and_fit(lengths, tokens):
    numbers = LLAMA.numbers(tokens, 1)
    made = pieces(LLAMA, [(length, length) for length in lengths], numbers)
    assert made is not None
    assert [piece.first for piece in made] == [0, *(piece.last for piece in made[:-1])]
    assert made[-1].last == len(lengths)
    for piece in made:
        assert 1 <= piece.groups <= LLAMA.groups
        assert LLAMA.numbers(sum(lengths[piece.first : piece.last]), piece.groups) <= numbers


@pytest.mark.parametrize("tokens", [1, 7])
def test_numbers_of_workspace(tokens):
    assert LLAMA.numbers(tokens, 2) == tokens * (192 + 2 * (192 + 128))
