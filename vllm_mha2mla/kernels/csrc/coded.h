// Coded rows where they lie: groups of eight rows, unit after unit, then the rows' scales
// (`coding/packing.py`). A row owns whole bytes, so that rows are written independently.
#pragma once

#include "paired.h"

// Columns of a unit; their codes of b bits fill b bytes.
constexpr int64_t UNIT = 8;
// A decoded number is scale * level / LEVEL_ONE.
constexpr float LEVEL_ONE = 128.0f;

INLINE char* coded_group(const Cache& c, int64_t block, int64_t offset) {
  return (char*)c.data + block * c.block_stride + offset / GROUP_ROWS * GROUP_ROWS * c.row_stride;
}

// Where a group's scales begin: one byte a row for the latent, then one a row for rotary columns.
INLINE uint8_t* scales_at(const Cache& c, const char* group) {
  return (uint8_t*)group + (c.row_stride - 2) * GROUP_ROWS;
}

INLINE int64_t rope_of(const Coded& k) { return k.rotary_units * UNIT; }
INLINE int64_t rank_of(const Coded& k) { return k.latent_units * UNIT; }
