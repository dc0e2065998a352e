"""The paged cache's rows as kernels see them: the only place that knows how a row is stored.

A row is ``[c ; k_rope]``: ``rank`` latent columns, then ``rope`` rotary ones. Triton works on
powers of two, so a tile of rows is loaded in up to three chunks of latent columns and one of
rotary columns: 448 latents are 256 + 128 + 64, where one padded chunk would be 512. Columns and
rows that are not there read as zero, whatever the memory holds: a page's unused rows may hold
anything, NaN included, and a product with a zero weight must not see it.
"""

from dataclasses import dataclass
from itertools import combinations_with_replacement

import triton
import triton.language as tl
from torch import Tensor

# The smallest side of a tile that matrix instructions take, and the smallest chunk of latents: each
# is the first operand of a product, of which Hopper's instructions take 64 rows.
SMALLEST = 16
SMALLEST_CHUNK = 64


@dataclass(frozen=True)
class Chunks:
    """The widths of a row's chunks, powers of two; 0 where a chunk is absent."""

    latent: tuple[int, int, int]
    rotary: int

    @property
    def width(self) -> int:
        """Columns of a tile in shared memory, padding included."""
        return sum(self.latent) + self.rotary


def row_chunks(rank: int, rope: int) -> Chunks:
    """Split a row into the chunks with the least padding, and the fewest of these."""
    powers = [1 << power for power in range(6, max(SMALLEST_CHUNK, rank).bit_length() + 1)]
    choices = (
        chunks
        for count in (1, 2, 3)
        for chunks in combinations_with_replacement(reversed(powers), count)
        if sum(chunks) >= rank
    )
    first, second, third = (*min(choices, key=sum), 0, 0)[:3]
    return Chunks((first, second, third), max(SMALLEST, next_power_of_2(rope)) if rope else 0)


def loaded_widths(rank: int, rope: int, cache: Tensor) -> tuple[int, int]:
    """Give the latent and rotary columns that are loaded of a row.

    Where a row's parts are no whole vectors of 16 bytes but the padded row is, it is loaded as if
    all of it were latent: its padding meets zeros of the query, and the outputs of its rotary and
    padding columns are not stored. Parts of vectors would be loaded number by number.
    """
    vector = 16 // cache.element_size()
    width = cache.shape[2]
    whole = width % vector == 0 and alignment(cache) == vector and cache.element_size() == 2
    if whole and (rank % vector or rope % vector):
        return width, 0
    return rank, rope


def next_power_of_2(number: int) -> int:
    """Give the smallest power of two that is not below a positive number."""
    return 1 << (number - 1).bit_length()


def alignment(cache: Tensor) -> int:
    """Give the number of elements, up to 16 bytes, that every row's start is a multiple of."""
    itemsize = cache.element_size()
    elements = 16 // itemsize
    while elements > 1 and (
        cache.stride(0) % elements
        or cache.stride(1) % elements
        or cache.data_ptr() % (elements * itemsize)
    ):
        elements //= 2
    return elements


@triton.jit
def load_pages(
    table,  # a request's row of the block table
    first,  # the tile's first row, a multiple of TILE
    end,  # rows from here on do not exist
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
):
    """Load the block number of each row of a tile, or only one where a block holds all of them."""
    token = first if BLOCK_SIZE % TILE == 0 else first + tl.arange(0, TILE)
    return tl.load(table + token // BLOCK_SIZE, mask=token < end, other=0)


@triton.jit
def row_offsets(
    page,  # block number of each row, or of all of them  # [TILE] or a scalar, int32
    token,  # position of each row in its request  # [TILE]
    block_stride,
    BLOCK_SIZE: tl.constexpr,
    ROW_STRIDE: tl.constexpr,
    ALIGN: tl.constexpr,
):
    """Give where each row begins in the cache, in elements; caches pass 2^31 of them."""
    offset = page.to(tl.int64) * block_stride + (token % BLOCK_SIZE) * ROW_STRIDE
    return tl.multiple_of(offset, ALIGN)


@triton.jit
def load_columns(
    cache,
    offset,  # of each row, from row_offsets  # [TILE], int64
    valid,  # rows that exist  # [TILE]
    FIRST: tl.constexpr,
    COUNT: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Load columns ``FIRST`` to ``FIRST + COUNT`` of a tile of rows  # [TILE, CHUNK]."""
    column = tl.arange(0, CHUNK)
    mask = valid[:, None]
    if COUNT < CHUNK:
        mask = mask & (column < COUNT)[None, :]
    return tl.load(cache + offset[:, None] + (FIRST + column)[None, :], mask=mask, other=0.0)
