// Cache blocks in pairs: the order in which the bfloat16 instruction multiplies them.
//
// Eight rows are a group. For every eight columns it has two tiles, of four rows each:
// [4 pairs of columns][4 rows][2], 64 bytes, one 128-bit lane a pair of columns. As keys, a tile is
// multiplied with pairs of a query, one a lane, and lanes are added at the end. As values, the two
// tiles interleaved are pairs of rows, and lanes hold different columns: nothing is left to add.
// The last tiles of a width that is no multiple of eight have fewer lanes.
#pragma once

#include "gemm.h"
#include "kernel.h"

constexpr int64_t GROUP_ROWS = 8, TILE_COLUMNS = 8;
// Dwords of a whole tile, and of both.
constexpr int64_t TILE_DWORDS = 16, TILES_DWORDS = 32;

// Returns true if a cache's blocks are stored in pairs. It depends on the cache and the variant
// alone, so that all writers and readers agree. A group has to be in one block, without gaps
// between its rows.
INLINE bool is_paired(const Cache& c) {
  return HAS_DOT && c.dtype == BFLOAT16 && c.width % 2 == 0 && c.row_stride == c.width &&
         c.block_size % GROUP_ROWS == 0;
}

INLINE int64_t pairs_of(int64_t numbers) { return (numbers + 1) / 2; }

// Where a pair of columns of a row lies in its group, in dwords.
INLINE int64_t pair_at(int64_t pairs, int64_t row, int64_t pair) {
  const int64_t tiles = pair / 4, left = pairs - tiles * 4, lanes = left < 4 ? left : 4;
  return tiles * TILES_DWORDS + row / 4 * 4 * lanes + pair % 4 * 4 + row % 4;
}

// The group of a row that lies `offset` rows into its block.
INLINE char* group_at(const Cache& c, int64_t block, int64_t offset) {
  return (char*)c.data + (block * c.block_stride + offset / GROUP_ROWS * GROUP_ROWS * c.width) * 2;
}

// Stores n numbers of one row from a column on, both even.
INLINE void store_pairs(const Cache& c, int64_t slot, int64_t column, const bf16* from, int64_t n) {
  const int64_t offset = slot % c.block_size;
  char* const group = group_at(c, slot / c.block_size, offset);
  for (int64_t i = 0; i < n; i += 2)
    memcpy(group + pair_at(c.width / 2, offset % GROUP_ROWS, (column + i) / 2) * 4, from + i, 4);
}

#if defined(__AVX512BF16__)

// Lanes of a group's last tiles when they are fewer than four, as a mask of dwords.
INLINE __mmask16 lanes_mask(int64_t lanes) { return (__mmask16)((1 << 4 * lanes) - 1); }

// Transposes a tile: from lanes of four pairs of a row to lanes of four rows of a pair, and back.
INLINE __m512i turn(__m512i x) {
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  return _mm512_permutexvar_epi32(order, x);
}

// Stores rows of the usual order as a group; a null row gives zeros. No load reads past its row.
INLINE void pair_rows(const bf16* const rows[GROUP_ROWS], int64_t width, char* group) {
  for (int64_t column = 0; column < width; column += TILE_COLUMNS) {
    const int64_t n = width - column < TILE_COLUMNS ? width - column : TILE_COLUMNS;
    const int64_t lanes = pairs_of(n);
    const __mmask8 some = (__mmask8)((1 << n) - 1);
    for (int tile = 0; tile < 2; tile++, group += lanes * 16) {
      __m128i part[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) {
        const bf16* row = rows[4 * tile + i];
        part[i] = row ? _mm_maskz_loadu_epi16(some, row + column) : _mm_setzero_si128();
      }
      __m512i x = _mm512_castsi128_si512(part[0]);
      x = _mm512_inserti32x4(x, part[1], 1);
      x = _mm512_inserti32x4(x, part[2], 2);
      x = _mm512_inserti32x4(x, part[3], 3);
      _mm512_mask_storeu_epi32(group, lanes_mask(lanes), turn(x));
    }
  }
}

// Copies a group's first rows back to their usual order  # to: [rows, width]
INLINE void unpair_rows(const char* group, int64_t rows, int64_t width, bf16* to) {
  for (int64_t column = 0; column < width; column += TILE_COLUMNS) {
    const int64_t n = width - column < TILE_COLUMNS ? width - column : TILE_COLUMNS;
    const int64_t lanes = n / 2;
    const __mmask8 some = (__mmask8)((1 << n) - 1);
    for (int tile = 0; tile < 2; tile++, group += lanes * 16) {
      const __m512i x = turn(_mm512_maskz_loadu_epi32(lanes_mask(lanes), group));
      const __m128i part[4] = {_mm512_castsi512_si128(x), _mm512_extracti32x4_epi32(x, 1),
                               _mm512_extracti32x4_epi32(x, 2), _mm512_extracti32x4_epi32(x, 3)};
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++)
        if (4 * tile + i < rows)
          _mm_mask_storeu_epi16(to + (4 * tile + i) * width + column, some, part[i]);
    }
  }
}

// Copies the first rows of a group; the others, which may never have been written, become zeros.
INLINE void first_rows(const char* group, int64_t rows, int64_t width, char* to) {
  for (int64_t pair = 0; pair < width / 2; pair += 4) {
    const int64_t left = width / 2 - pair, lanes = left < 4 ? left : 4;
    for (int64_t tile = 0; tile < 2; tile++) {
      const int64_t kept = rows - 4 * tile < 0 ? 0 : rows - 4 * tile < 4 ? rows - 4 * tile : 4;
      const __mmask16 mask = (__mmask16)(((1 << kept) - 1) * 0x1111) & lanes_mask(lanes);
      const int64_t at = pair * GROUP_ROWS + tile * 4 * lanes;
      _mm512_mask_storeu_epi32(to + at * 4, lanes_mask(lanes),
                               _mm512_maskz_loadu_epi32(mask, group + at * 4));
    }
  }
}

// Columns [16 unit, 16 unit + 16) of a group as values: four vectors, pair i of rows (i, i + 4) in
// vector i, columns in the order of their lanes (`in_order` undoes it).
template <bool WHOLE>
INLINE void pairs_of_rows(const char* group, int64_t unit, int64_t pairs, vf values[4]) {
  const char* from = group + unit * 2 * TILES_DWORDS * 4;
  __m512i x[4];  // two tiles of eight columns, two of the next
#pragma GCC unroll 2
  for (int half = 0; half < 2; half++) {
    if (WHOLE) {
      x[2 * half] = _mm512_loadu_si512(from + half * TILES_DWORDS * 4);
      x[2 * half + 1] = _mm512_loadu_si512(from + (half * TILES_DWORDS + TILE_DWORDS) * 4);
    } else {
      const int64_t left = pairs - unit * 8 - half * 4, lanes = left < 0 ? 0 : left < 4 ? left : 4;
      const char* tile = from + half * TILES_DWORDS * 4;
      x[2 * half] = _mm512_maskz_loadu_epi32(lanes_mask(lanes), tile);
      x[2 * half + 1] = _mm512_maskz_loadu_epi32(lanes_mask(lanes), tile + lanes * 16);
    }
  }
  const __m512i a = _mm512_unpacklo_epi16(x[0], x[1]), b = _mm512_unpackhi_epi16(x[0], x[1]);
  const __m512i c = _mm512_unpacklo_epi16(x[2], x[3]), d = _mm512_unpackhi_epi16(x[2], x[3]);
  values[0] = (vf)_mm512_unpacklo_epi64(a, c);
  values[1] = (vf)_mm512_unpackhi_epi64(a, c);
  values[2] = (vf)_mm512_unpacklo_epi64(b, d);
  values[3] = (vf)_mm512_unpackhi_epi64(b, d);
}

// Sums over values, back to the order of columns.
INLINE vf in_order(vf sums) {
  const __m512i order = _mm512_setr_epi32(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
  return (vf)_mm512_permutexvar_ps(order, (__m512)sums);
}

// Probabilities of 32 rows as the pairs that values come in: rows (8 g + i, 8 g + i + 4).
INLINE __m512i pairs_of_weights(vf first, vf second) {
  const __m512i order = _mm512_set_epi16(
      31, 27, 30, 26, 29, 25, 28, 24, 23, 19, 22, 18, 21, 17, 20, 16,
      15, 11, 14, 10, 13, 9, 12, 8, 7, 3, 6, 2, 5, 1, 4, 0);
  const __m512bh both = _mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
  return _mm512_permutexvar_epi16(order, (__m512i)both);
}

#endif
