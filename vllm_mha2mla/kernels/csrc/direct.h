// Products with cache rows in pairs, without packing them: packing does not pay for few rows of A,
// which would use each packed vector only once or a few times.
#pragma once

#include "ahead.h"
#include "pack.h"

// Cache rows per step of the online softmax, packed and unpacked; multiples of 2 * LANES. L1 holds
// BLOCK_ROWS packed rows, or DIRECT_ROWS unpacked ones with the prefetched rows after them and the
// sums.
constexpr int64_t BLOCK_ROWS = 96, DIRECT_ROWS = 32;
// Limits for few rows of A: in multiples of TILE_ROWS, and in bytes, to leave L1 room for the rest.
constexpr int64_t DIRECT_PARTS = 4, DIRECT_BYTES = 36 << 10;

// The groups of a step.
struct Groups {
  const char* at[BLOCK_ROWS / GROUP_ROWS];
  int64_t count;
};

// Lines prefetched with each group's values; with those of the scores, a little less than needed.
constexpr int VALUE_LINES = 3;

// Dwords of one spread row of A: each pair four times, once for every row of a lane of a tile.
INLINE int64_t query_dwords(int64_t width) {
  return (width + TILE_COLUMNS - 1) / TILE_COLUMNS * TILE_DWORDS;
}

// The most rows of A that are multiplied without packing.
INLINE int64_t direct_limit(int64_t width) {
  const int64_t fit = DIRECT_BYTES / (query_dwords(width) * 4);
  if (fit < TILE_ROWS) return TILE_ROWS;
  return fit < DIRECT_PARTS * TILE_ROWS ? fit : DIRECT_PARTS * TILE_ROWS;
}

#if defined(__AVX512BF16__)

// Spreads rows of A, [rows][steps], to [tiles][rows][TILE_DWORDS].
INLINE void spread_query(const float* pairs, int64_t rows, int64_t steps, float* to) {
  const __m512i lanes = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
  for (int64_t step = 0; step < steps; step += 4) {
    const __mmask8 some = (__mmask8)((1 << (steps - step < 4 ? steps - step : 4)) - 1);
    for (int64_t m = 0; m < rows; m++, to += TILE_DWORDS) {
      const __m128i four = _mm_maskz_loadu_epi32(some, pairs + m * steps + step);
      _mm512_storeu_si512(to, _mm512_permutexvar_epi32(lanes, _mm512_castsi128_si512(four)));
    }
  }
}

// Adds the lanes of four sums: of two rows of A, each with two tiles. What a shuffle has to move is
// blended before, because blending is free beside multiplications and shuffling is not.
INLINE __m512 add_lanes(vf row0[2], vf row1[2]) {
  __m512 x[2];  // lanes 0 + 2 and 1 + 3: of row 0, of row 1
#pragma GCC unroll 2
  for (int i = 0; i < 2; i++) {
    const __m512 a = (__m512)row0[i], b = (__m512)row1[i];
    x[i] = _mm512_add_ps(_mm512_mask_blend_ps(0xff00, a, b), _mm512_shuffle_f32x4(a, b, 0x4e));
  }
  const __m512 own = _mm512_mask_blend_ps(0xf0f0, x[0], x[1]);
  const __m512 other = _mm512_mask_blend_ps(0xf0f0, x[1], x[0]);
  return _mm512_add_ps(own, _mm512_shuffle_f32x4(other, other, 0xb1));
}

// Adds products with two tiles.
template <int ROWS>
INLINE void score_tiles(const float* query, vf first, vf second, vf sum[ROWS][2]) {
#pragma GCC unroll 16
  for (int m = 0; m < ROWS; m++) {
    const vf pairs = load(query + m * TILE_DWORDS);
    sum[m][0] = multiply_add<true>(sum[m][0], pairs, first);
    sum[m][1] = multiply_add<true>(sum[m][1], pairs, second);
  }
}

// Scores of one group with the rows of A  # c: [ROWS][BLOCK_ROWS]
template <int ROWS>
INLINE void score_group(const float* query, const float* group, int64_t steps, float* c,
                        float scale, const char* line, int64_t line_step) {
  vf sum[ROWS][2] = {};
  const float* const end = group + steps / 4 * TILES_DWORDS;
  for (; group < end; group += TILES_DWORDS, query += ROWS * TILE_DWORDS) {
    __builtin_prefetch(line, 0, 3);
    line += line_step;
    score_tiles<ROWS>(query, load(group), load(group + TILE_DWORDS), sum);
  }
  if (const int64_t lanes = steps % 4) {
    const __mmask16 some = lanes_mask(lanes);
    score_tiles<ROWS>(query, (vf)_mm512_maskz_loadu_ps(some, group),
                      (vf)_mm512_maskz_loadu_ps(some, group + lanes * 4), sum);
  }
#pragma GCC unroll 8
  for (int m = 0; m < ROWS; m += 2) {
    const int next = m + 1 < ROWS ? m + 1 : m;
    const __m512 both = _mm512_mul_ps(add_lanes(sum[m], sum[next]), _mm512_set1_ps(scale));
    _mm256_storeu_ps(c + m * BLOCK_ROWS, _mm512_castps512_ps256(both));
    if (m + 1 < ROWS)
      _mm256_storeu_ps(c + next * BLOCK_ROWS, _mm512_extractf32x8_ps(both, 1));
  }
}

template <int ROWS>
static void direct_scores(const float* query, const Groups& in, int64_t steps, float* c,
                          float scale, Ahead& ahead) {
  for (int64_t g = 0; g < in.count; g++) {
    const char* const line = take_lines(ahead, steps / 4);
    score_group<ROWS>(query, (const float*)in.at[g], steps, c + g * GROUP_ROWS, scale, line,
                      ahead.step);
  }
}

// Adds WIDE times 16 columns of values  # weights: [ROWS][BLOCK_ROWS]
template <int ROWS, int WIDE, bool WHOLE>
static void weigh_units(const float* weights, const Groups& in, int64_t steps, int64_t unit,
                        float* c, int64_t stride, Ahead& ahead) {
  // A single unit has too few sums to hide the latency of additions, so each is kept in two parts.
  constexpr int SUMS = WIDE == 1 ? 2 : WIDE;
  vf sum[ROWS][SUMS];
  c += unit * LANES;
#pragma GCC unroll 16
  for (int m = 0; m < ROWS; m++)
#pragma GCC unroll 2
    for (int n = 0; n < SUMS; n++) sum[m][n] = n < WIDE ? load(c + m * stride + n * LANES) : vf{};
  for (int64_t g = 0; g < in.count; g++, weights += 4) {
    vf values[WIDE][4];
#pragma GCC unroll 2
    for (int n = 0; n < WIDE; n++) pairs_of_rows<WHOLE>(in.at[g], unit + n, steps, values[n]);
    ask_for<VALUE_LINES>(ahead);
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
#pragma GCC unroll 16
      for (int m = 0; m < ROWS; m++) {
        const vf weight = splat(weights[m * BLOCK_ROWS + i]);
#pragma GCC unroll 2
        for (int n = 0; n < WIDE; n++) {
          vf& own = sum[m][WIDE == 1 ? i % 2 : n];
          own = multiply_add<true>(own, weight, values[n][i]);
        }
      }
  }
#pragma GCC unroll 16
  for (int m = 0; m < ROWS; m++)
#pragma GCC unroll 2
    for (int n = 0; n < WIDE; n++)
      store(c + m * stride + n * LANES, WIDE == 1 ? sum[m][0] + sum[m][1] : sum[m][n]);
}

template <int ROWS>
static void direct_values(const float* weights, const Groups& in, int64_t steps, float* c,
                          int64_t units, Ahead& ahead) {
  const int64_t stride = units * LANES;
  int64_t unit = 0;
  for (; unit + 2 <= units && (unit + 2) * 8 <= steps; unit += 2)
    weigh_units<ROWS, 2, true>(weights, in, steps, unit, c, stride, ahead);
  for (; unit < units; unit++) {
    if ((unit + 1) * 8 <= steps)
      weigh_units<ROWS, 1, true>(weights, in, steps, unit, c, stride, ahead);
    else
      weigh_units<ROWS, 1, false>(weights, in, steps, unit, c, stride, ahead);
  }
}

// The two products, compiled for each number of rows of A.
struct Direct {
  void (*scores)(const float*, const Groups&, int64_t, float*, float, Ahead&);
  void (*values)(const float*, const Groups&, int64_t, float*, int64_t, Ahead&);
};
#define DIRECT(n) {direct_scores<n>, direct_values<n>}
static const Direct DIRECT_PRODUCTS[TILE_ROWS] = {DIRECT(1), DIRECT(2), DIRECT(3),
                                                  DIRECT(4), DIRECT(5), DIRECT(6),
                                                  DIRECT(7), DIRECT(8), DIRECT(9)};
#undef DIRECT

#endif
