// Cache rows into the panels of B that gemm.h reads: keys by rows, values by columns.
#pragma once

#include "paired.h"

// Dwords of n numbers that are summed over.
template <bool DOT>
INLINE int64_t steps_of(int64_t n) { return DOT ? pairs_of(n) : n; }

struct Widths {
  int64_t width, rank;
  int64_t key_steps;     // dwords summed over for one score
  int64_t value_panels;  // panels of LANES latents
  int64_t value_panel;   // dwords per panel: a block's rows, or pairs of rows, times LANES
};

// Transposes LANES vectors of LANES floats, in log2(LANES) rounds of interleaving halves.
INLINE void transpose(vf x[LANES]) {
  vf y[LANES];
#pragma GCC unroll 4
  for (int round = 1; round < LANES; round *= 2) {
#pragma GCC unroll 16
    for (int i = 0; i < LANES / 2; i++) {
      const vf a = x[i], b = x[i + LANES / 2];
#if defined(__AVX512F__)
      const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
      const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
      y[2 * i] = (vf)_mm512_permutex2var_ps((__m512)a, low, (__m512)b);
      y[2 * i + 1] = (vf)_mm512_permutex2var_ps((__m512)a, high, (__m512)b);
#elif defined(__AVX2__)
      const __m256 low = _mm256_unpacklo_ps((__m256)a, (__m256)b);
      const __m256 high = _mm256_unpackhi_ps((__m256)a, (__m256)b);
      y[2 * i] = (vf)_mm256_permute2f128_ps(low, high, 0x20);
      y[2 * i + 1] = (vf)_mm256_permute2f128_ps(low, high, 0x31);
#else
      y[2 * i] = vf{a[0], b[0], a[1], b[1]};
      y[2 * i + 1] = vf{a[2], b[2], a[3], b[3]};
#endif
    }
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) x[i] = y[i];
  }
}

// LANES rows in float. `staged`: room for LANES rows of round_up(width, LANES).
template <class T>
static void pack_floats(const T* rows, int64_t stride, const Widths& w, float* staged, float* keys,
                        float* values) {
  const int64_t padded = round_up(w.width, LANES);
  for (int i = 0; i < LANES; i++) {
    convert(rows + i * stride, staged + i * padded, w.width);
    for (int64_t j = w.width; j < padded; j++) staged[i * padded + j] = 0;
  }
  for (int64_t j = 0; j < padded; j += LANES) {
    vf x[LANES];
#pragma GCC unroll 16
    for (int i = 0; i < LANES; i++) x[i] = load(staged + i * padded + j);
    transpose(x);
    for (int i = 0; i < LANES && j + i < w.width; i++) store(keys + (j + i) * LANES, x[i]);
  }
  for (int64_t panel = 0; panel < w.value_panels; panel++)
    for (int i = 0; i < LANES; i++)
      store(values + panel * w.value_panel + i * LANES, load(staged + i * padded + panel * LANES));
}

#if defined(__AVX512BF16__)

// Two groups have four tiles for eight columns. Exchanging their lanes gives four vectors, each
// with one pair of columns of all 16 rows.
template <bool WHOLE>
INLINE void pack_tiles(const char* const groups[2], int64_t step, int64_t lanes, float* keys) {
  __m512i x[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    const char* tile = groups[i / 2] + (step * GROUP_ROWS + i % 2 * 4 * lanes) * 4;
    x[i] = WHOLE ? _mm512_loadu_si512(tile) : _mm512_maskz_loadu_epi32(lanes_mask(lanes), tile);
  }
  const __m512i a = _mm512_shuffle_i32x4(x[0], x[1], 0x44), b = _mm512_shuffle_i32x4(x[0], x[1], 0xee);
  const __m512i c = _mm512_shuffle_i32x4(x[2], x[3], 0x44), d = _mm512_shuffle_i32x4(x[2], x[3], 0xee);
  const __m512i pairs[4] = {_mm512_shuffle_i32x4(a, c, 0x88), _mm512_shuffle_i32x4(a, c, 0xdd),
                            _mm512_shuffle_i32x4(b, d, 0x88), _mm512_shuffle_i32x4(b, d, 0xdd)};
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++)
    if (WHOLE || i < lanes) _mm512_store_si512(keys + (step + i) * LANES, pairs[i]);
}

INLINE void pack_groups(const char* const groups[2], const Widths& w, float* keys, float* values) {
  int64_t step = 0;
  for (; step + 4 <= w.key_steps; step += 4) pack_tiles<true>(groups, step, 4, keys);
  if (step < w.key_steps) pack_tiles<false>(groups, step, w.key_steps - step, keys);
  for (int64_t unit = 0; unit < w.value_panels; unit++) {
    const bool whole = (unit + 1) * 8 <= w.key_steps;
    for (int g = 0; g < 2; g++) {
      vf x[4];
      if (whole) pairs_of_rows<true>(groups[g], unit, w.key_steps, x);
      else pairs_of_rows<false>(groups[g], unit, w.key_steps, x);
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) store(values + unit * w.value_panel + (4 * g + i) * LANES, x[i]);
    }
  }
}

#endif
