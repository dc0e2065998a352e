"""Coded rows of the paged cache as kernels see them: the only place that knows how one is stored.

``coding/packing.py`` defines the order of bytes: groups of 8 rows, and in a group all rows' bytes
of one unit of 8 columns, then of the next, at its end the scales.

A thread takes a row's unit at once, all 8 columns: two words of 32 bits hold its bytes, whatever
the bits, and tables give the level of each code, or of two codes at once where they are narrow. The
tables of ``coded_tables.py`` also say where a unit begins and how many bits it has, so that one
compiled kernel reads rows of any bits. A unit that only pads a row has no bits, and the level of no
bits is zero.
"""

import triton
import triton.language as tl


@triton.jit
def load_groups(
    table,  # a request's row of the block table
    first,  # the tile's first row, a multiple of TILE
    end,  # rows from here on do not exist
    block_stride,  # bytes
    row_bytes,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
):
    """Give where each group of 8 rows begins in the cache, in bytes  # [TILE // 8], int64.

    A group without rows is one of block 0, whose bytes can be read and decode to finite numbers.
    """
    token = first + 8 * tl.arange(0, TILE // 8)
    if BLOCK_SIZE % TILE == 0:
        page = tl.load(table + first // BLOCK_SIZE)
    else:
        page = tl.load(table + token // BLOCK_SIZE, mask=token < end, other=0)
    return page.to(tl.int64) * block_stride + (token % BLOCK_SIZE) * row_bytes


@triton.jit
def load_scales(cache, group, before, TILE: tl.constexpr):
    """Load scales of a tile's rows, that many bytes into each group  # [TILE], float32."""
    place = group[:, None] + (before + tl.arange(0, 8))[None, :]
    exponent = tl.load(cache + place).to(tl.float32)  # [TILE // 8, 8]
    return tl.reshape(tl.exp2((exponent - 128) * 0.125), [TILE])


@triton.jit
def load_unit_places(units, FIRST: tl.constexpr, UNITS: tl.constexpr):
    """Load where the bytes of each unit and row begin in a group, and the units' bits.

    Returns:
        bytes from the group's beginning  # [UNITS, 8 rows], int32
        bits  # [UNITS, 1], int32
    """
    unit = units + 2 * (FIRST + tl.arange(0, UNITS))[:, None]
    bits = tl.load(unit + 1)
    return tl.load(unit) + bits * tl.arange(0, 8)[None, :], bits


@triton.jit
def load_units(cache, group, place):
    """Load the bytes of every row's units: two words, of which the lowest bit is the first code's.

    A group's bytes are a multiple of 8 from the cache's beginning, so words are aligned. The second
    word may lie behind the unit, but not behind the group, which ends with its scales.

    Args:
        cache: the paged cache.
        group: from load_groups  # [TILE // 8], int64
        place: from load_unit_places  # [UNITS, 8], int32

    Returns:
        # [TILE // 8, UNITS, 8], uint64
    """
    at = group[:, None, None] + (place & -4)[None, :, :]
    words = (cache + at).to(tl.pointer_type(tl.uint32))
    whole = tl.load(words).to(tl.uint64) | (tl.load(words + 1).to(tl.uint64) << 32)
    return whole >> ((place & 3) * 8)[None, :, :].to(tl.uint64)


@triton.jit
def load_levels(
    words,  # from load_units  # [TILE // 8, UNITS, 8], uint64
    bits,  # of each unit  # [UNITS, 1], int32
    levels,  # of every number of bits: code i of b bits at 2^b + i
    pairs,  # of codes of up to 4 bits: codes i and k at 2^(2b) + i + 2^b k, two levels in 32 bits
    TILE: tl.constexpr,
    UNITS: tl.constexpr,
    NARROW: tl.constexpr,  # no unit has more than 4 bits, and levels have 16
):
    """Look up the levels of a tile of rows  # [TILE, 8 * UNITS], the dtype of ``levels``."""
    bits = bits[None, :, :]
    low = words.to(tl.uint32)  # four codes or, of up to 4 bits, all eight
    if NARROW:
        a, b = _pair(pairs, low, bits, 0, levels.dtype.element_ty)
        c, d = _pair(pairs, low, bits, 1, levels.dtype.element_ty)
        e, f = _pair(pairs, low, bits, 2, levels.dtype.element_ty)
        g, h = _pair(pairs, low, bits, 3, levels.dtype.element_ty)
    else:
        high = (words >> (4 * bits).to(tl.uint64)).to(tl.uint32)
        a, b = _level(levels, low, bits, 0), _level(levels, low, bits, 1)
        c, d = _level(levels, low, bits, 2), _level(levels, low, bits, 3)
        e, f = _level(levels, high, bits, 0), _level(levels, high, bits, 1)
        g, h = _level(levels, high, bits, 2), _level(levels, high, bits, 3)
    even = tl.join(tl.join(a, e), tl.join(c, g))
    odd = tl.join(tl.join(b, f), tl.join(d, h))
    by_unit = tl.reshape(tl.join(even, odd), [TILE // 8, UNITS, 8, 8])
    return tl.reshape(tl.permute(by_unit, (0, 2, 1, 3)), [TILE, 8 * UNITS])


@triton.jit
def _level(levels, word, bits, CODE: tl.constexpr):
    """Look up the level of one of four codes in each word."""
    top = (1 << bits).to(tl.uint32)
    code = (word >> (CODE * bits).to(tl.uint32)) & (top - 1)
    return tl.load(levels + (code | top))


@triton.jit
def _pair(pairs, word, bits, PAIR: tl.constexpr, DTYPE: tl.constexpr):
    """Look up the levels of one of four pairs of codes in each word."""
    top = (1 << (2 * bits)).to(tl.uint32)
    codes = (word >> (2 * PAIR * bits).to(tl.uint32)) & (top - 1)
    both = tl.load(pairs + (codes | top))
    first = (both & 0xFFFF).to(tl.int16).to(DTYPE, bitcast=True)
    return first, (both >> 16).to(tl.int16).to(DTYPE, bitcast=True)


@triton.jit
def load_turned_mean(means, turns, tile, TILE: tl.constexpr, PADDED_HALF: tl.constexpr):
    """Turn the mean of keys by the positions of a tile: the halves  # [TILE, PADDED_HALF] each.

    Position ``n = 64 g + i`` turns by ``64 g``, which the table of means has, then by ``i``. Tiles
    have at most 64 rows and begin at multiples of them.
    """
    pair = tl.arange(0, PADDED_HALF)
    mean = means + (tile // 64) * (2 * PADDED_HALF) + pair
    first = tl.load(mean)[None, :]
    second = tl.load(mean + PADDED_HALF)[None, :]
    turn = turns + (tile % 64 + tl.arange(0, TILE))[:, None] * (2 * PADDED_HALF) + pair[None, :]
    cos = tl.load(turn).to(tl.float32)
    sin = tl.load(turn + PADDED_HALF).to(tl.float32)
    return first * cos - second * sin, second * cos + first * sin
