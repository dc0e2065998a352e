"""The two ways to compute a batch's prefills: absorbed, or with keys and values expanded.

Absorbed, a pair of tokens costs each head a row for its score and a latent for its value. Expanded
to ``K_g = [W_UK[g] c ; k_rope]`` and ``V_g = W_UV[g] c`` of every KV group, it costs less, but all
rows of the context are expanded again in every step that reads them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

Prefill = tuple[int, int]
"""New tokens of a request, and its context with these."""

# Products that a GPU computes while it moves one number between chip and memory: an H100 does
# 250e12 of 16 bits a second in such kernels, and moves 1.5e12 numbers.
PRODUCTS_PER_NUMBER = 170
# The longest context that is expanded: 400 MiB of workspace for Llama-3-8B's heads. Beyond it,
# absorbed attention needs none.
LONGEST = 1 << 18


@dataclass(frozen=True)
class Shape:
    """The sizes of one layer on one rank.

    Attributes:
        heads: query heads.
        groups: KV groups, whose heads share keys and values.
        nope: width of a head's query without rotation.
        rope: width of the rotary part.
        v: width of a head's value.
        rank: width of the latent.
        pair: numbers of a row that absorbed attention multiplies for a pair of tokens and a head.
        value: width of an expanded value in memory, padding included.
    """

    heads: int
    groups: int
    nope: int
    rope: int
    v: int
    rank: int
    pair: int
    value: int

    @property
    def key(self) -> int:
        """Width of an expanded key."""
        return self.nope + self.rope

    @property
    def latent(self) -> int:
        """Width of a latent in the workspace, where each begins at a multiple of 16 bytes."""
        return -(-self.rank // 8) * 8

    def numbers(self, tokens: int, groups: int) -> int:
        """Numbers of workspace that so many tokens take with so many groups at once."""
        return tokens * (self.latent + groups * (self.key + self.value))


@dataclass(frozen=True)
class Piece:
    """Prefills that are expanded and attended together.

    Attributes:
        first: the first of them, counted in the batch's prefills.
        last: the one after the last.
        groups: KV groups that are expanded at once.
    """

    first: int
    last: int
    groups: int


def expansion_is_cheaper(shape: Shape, prefills: Sequence[Prefill]) -> bool:
    """Tell which way takes fewer products, memory traffic counted as products."""
    new = sum(query for query, _ in prefills)
    context = sum(length for _, length in prefills)
    pairs = sum(query * (length - (query - 1) / 2) for query, length in prefills)
    up = shape.nope + shape.v
    absorbed = shape.heads * (pairs * shape.pair + new * shape.rank * up)
    moved = context * (shape.rank + 2 * shape.groups * (shape.key + shape.value))
    expanded = (
        shape.heads * pairs * (shape.key + shape.value)
        + shape.groups * context * shape.rank * up
        + PRODUCTS_PER_NUMBER * moved
    )
    return expanded < absorbed


def workspace_numbers(shape: Shape, batched_tokens: int, model_len: int) -> int:
    """Numbers of workspace: a step of new tokens whole, or the longest request by single groups."""
    longest = shape.numbers(min(model_len, LONGEST), 1)
    return max(shape.numbers(batched_tokens, shape.groups), longest)


def pieces(shape: Shape, prefills: Sequence[Prefill], numbers: int) -> list[Piece] | None:
    """Divide prefills so that each piece fits the workspace; ``None`` where one request does not.

    Heads do not depend on each other, so a request too long for all groups at once takes them one
    after another, and no partial results have to be merged.
    """
    made: list[Piece] = []
    first, tokens = 0, 0
    for index, (_, length) in enumerate(prefills):
        if first < index and shape.numbers(tokens + length, shape.groups) > numbers:
            made.append(_piece(shape, first, index, tokens, numbers))
            first, tokens = index, 0
        tokens += length
    made.append(_piece(shape, first, len(prefills), tokens, numbers))
    return made if all(piece.groups for piece in made) else None


def _piece(shape: Shape, first: int, last: int, tokens: int, numbers: int) -> Piece:
    room = numbers // max(tokens, 1) - shape.latent
    return Piece(first, last, max(0, min(shape.groups, room // (shape.key + shape.value))))
