"""Coded rows of new tokens, on their way into the cache.

``rotate.py`` for a coded cache: one kernel turns every head's ``q_rope``, and codes the row of each
new token as ``coding/rounding.py`` says. A row's bytes belong to it alone, so programs do not
disturb each other. Each stored byte is built from the codes that lie in it.
"""

import triton
import triton.language as tl
from torch import Tensor

from vllm_mha2mla.kernels.cuda.coded_tables import CodedTables
from vllm_mha2mla.kernels.cuda.rotate import HEADS_AT_ONCE, turn_queries
from vllm_mha2mla.kernels.cuda.rows import next_power_of_2


def rotate_and_encode(
    query: Tensor,
    kv_latent: Tensor,
    positions: Tensor,
    slots: Tensor,
    inv_freq: Tensor,
    q_out: Tensor,
    cache: Tensor,
    tables: CodedTables,
    nope: int,
    column: int,
) -> None:
    """Turn the rotary parts of new tokens, code and store their rows.

    Args:
        query: ``[q_nope ; q_rope]`` of every head, not turned  # [tokens, heads * (nope + rope)]
        kv_latent: ``[z ; u]``, not turned, any float dtype  # [tokens, rank + rope]
        positions: position of each token in its request  # [tokens], int64
        slots: ``block * block_size + offset``; negative for padding, skipped  # [tokens], int64
        inv_freq: ``theta_j`` of each pair, float32  # [rope/2]
        q_out: its last columns, from ``column`` on, are filled in place; may be the query itself
            # [tokens, heads, column + rope]
        cache: the paged cache, changed in place  # [blocks, block_size, row_bytes], uint8
        tables: of the layer.
        nope: query columns of a head that are not turned.
        column: of ``q_out``, where the rotary part begins.
    """
    tokens, heads, _ = q_out.shape
    if tokens == 0:
        return
    half, pieces = inv_freq.shape[0], tables.pieces
    _rotate_and_encode[(tokens, 1 + triton.cdiv(heads, HEADS_AT_ONCE))](
        query,
        kv_latent,
        positions,
        slots,
        inv_freq,
        q_out,
        cache,
        tables.units,
        tables.borders,
        tables.inverse_gains,
        tables.first_row,
        query.stride(0),
        kv_latent.stride(0),
        q_out.stride(0),
        q_out.stride(1),
        cache.stride(0),
        heads,
        tables.code.widths.kv_lora_rank,
        tables.code.row_bytes,
        max(tables.code.latent_units),
        max(tables.code.rotary_units[0], default=0),
        NOPE=nope,
        HALF=half,
        QUERY_COLUMN=column,
        BLOCK_SIZE=cache.shape[1],
        HEADS=min(HEADS_AT_ONCE, next_power_of_2(heads)),
        HALF_TILE=next_power_of_2(max(1, half)),
        LATENT_UNITS=pieces.latent // 8,
        LATENT_TILE=next_power_of_2(pieces.latent // 8),
        HALF_UNITS=pieces.half // 8,
        num_warps=4,
    )


# The tokens of a step begin at any position of these; the numbers vary from layer to layer.
@triton.jit(
    do_not_specialize=["rank", "row_bytes", "latent_steps", "rotary_steps"],
    do_not_specialize_on_alignment=["positions", "slots"],
)
def _rotate_and_encode(
    query,
    kv_latent,
    positions,
    slots,
    inv_freq,
    q_out,
    cache,
    units,
    borders,
    inverse_gains,
    first_row,
    query_stride,
    latent_stride,
    out_token_stride,
    out_head_stride,
    block_stride,
    heads,
    rank,
    row_bytes,
    latent_steps,  # the most bits of a code
    rotary_steps,
    NOPE: tl.constexpr,
    HALF: tl.constexpr,
    QUERY_COLUMN: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    HEADS: tl.constexpr,
    HALF_TILE: tl.constexpr,
    LATENT_UNITS: tl.constexpr,
    LATENT_TILE: tl.constexpr,
    HALF_UNITS: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    position = tl.load(positions + token)
    if tl.program_id(1) == 0:
        slot = tl.load(slots + token).to(tl.int64)
        if slot >= 0:
            row = slot % 8
            group = cache + (slot // BLOCK_SIZE) * block_stride
            group += (slot % BLOCK_SIZE - row) * row_bytes
            source = kv_latent + token * latent_stride
            # Only a text's first row is coded against another, whose columns are known.
            known, known_pairs = tl.where(position == 0, rank, 0), tl.where(position == 0, HALF, 0)

            unit = tl.arange(0, LATENT_TILE)
            column = unit[:, None] * 8 + tl.arange(0, 8)[None, :]
            exists = column < rank
            z = tl.load(source + column, mask=exists, other=0.0).to(tl.float32)
            z -= tl.load(first_row + column, mask=column < known, other=0.0)
            gains = tl.load(inverse_gains + unit, mask=unit < LATENT_UNITS, other=0.0)
            square = _squares(z, gains) / rank
            z = z / _store_scale(group + row_bytes * 8 - 16 + row, square)
            _store_codes(*(group, row, z, units, borders, unit, unit < LATENT_UNITS, latent_steps))

            exponent = group + row_bytes * 8 - 8 + row
            if HALF > 0:
                unit = tl.arange(0, HALF_UNITS)
                pair = unit[:, None] * 8 + tl.arange(0, 8)[None, :]
                exists = pair < HALF
                frequency = tl.load(inv_freq + pair, mask=exists, other=0.0)
                angle = position.to(tl.float32) * frequency
                cos, sin = tl.cos(angle), tl.sin(angle)
                source += rank + pair
                a = tl.load(source, mask=exists, other=0.0).to(tl.float32)
                b = tl.load(source + HALF, mask=exists, other=0.0).to(tl.float32)
                from_row = first_row + LATENT_UNITS * 8 + pair
                first = a * cos - b * sin - tl.load(from_row, mask=pair < known_pairs, other=0.0)
                from_row += HALF_UNITS * 8
                second = b * cos + a * sin - tl.load(from_row, mask=pair < known_pairs, other=0.0)
                gains = tl.load(inverse_gains + LATENT_UNITS + unit)
                square = (_squares(first, gains) + _squares(second, gains)) / (2 * HALF)
                scale = _store_scale(exponent, square)
                unit += LATENT_UNITS
                _store_codes(
                    *(group, row, first / scale, units, borders, unit, unit >= 0, rotary_steps)
                )
                unit += HALF_UNITS
                _store_codes(
                    *(group, row, second / scale, units, borders, unit, unit >= 0, rotary_steps)
                )
            else:
                tl.store(exponent, 0)
    else:
        pair = tl.arange(0, HALF_TILE)
        frequency = tl.load(inv_freq + pair, mask=pair < HALF, other=0.0)
        angle = position.to(tl.float32) * frequency
        turn_queries(
            query + token * query_stride,
            q_out + token * out_token_stride,
            out_head_stride,
            heads,
            tl.cos(angle),
            tl.sin(angle),
            NOPE,
            HALF,
            QUERY_COLUMN,
            QUERY_COLUMN + 2 * HALF,
            HEADS,
            HALF_TILE,
            1,
        )


@triton.jit
def _squares(y, inverse_gains):
    """Sum the squares of a part's columns, each over its gain  # y: [units, 8]"""
    relative = y * inverse_gains[:, None]
    return tl.sum(tl.sum(relative * relative, 1), 0)


@triton.jit
def _store_scale(place, square):
    """Store the byte of a part's scale, and give the scale: ``2^((byte - 128) / 8)``."""
    # 4 log2 of the mean square is 8 log2 of its root.
    exponent = tl.floor(4 * tl.log2(tl.maximum(square, 1e-36)) + 128.5)
    exponent = tl.minimum(tl.maximum(exponent, 0.0), 255.0)
    tl.store(place, exponent.to(tl.uint8))
    return tl.exp2((exponent - 128) * 0.125)


@triton.jit
def _store_codes(group, row, y, units, borders, unit, exists, steps):
    """Code a row's units and store their bytes  # y: [units, 8], over the row's scale"""
    start = tl.load(units + 2 * unit, mask=exists, other=0)[:, None]
    bits = tl.load(units + 2 * unit + 1, mask=exists, other=0)[:, None]
    # Down the tree of 8 levels, of which the codes of fewer bits have the lowest.
    tree = borders + 256 * bits
    node = tl.zeros(y.shape, tl.int32) + (256 >> steps)
    for _ in range(steps):
        node = 2 * node + (y > tl.load(tree + node)).to(tl.int32)
    place = tl.arange(0, 8)[None, :]
    codes = (node - 256).to(tl.int64) << (place * bits).to(tl.int64)
    whole = tl.sum(codes, 1)[:, None]
    stored = (whole >> (8 * place).to(tl.int64)).to(tl.uint8)
    tl.store(group + start + row * bits + place, stored, mask=place < bits)
