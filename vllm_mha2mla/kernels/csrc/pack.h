// Cache rows into the panels of B that gemm.h reads: keys by rows, values by columns.
#pragma once

#include "gemm.h"
#include "kernel.h"

// Dwords that n numbers take in the direction of summation.
template <bool DOT>
INLINE int64_t steps_of(int64_t n) { return DOT ? (n + 1) / 2 : n; }

struct Widths {
  int64_t width, rank;
  int64_t key_steps;     // of one score
  int64_t value_panels;  // of LANES latents each
  int64_t value_panel;   // dwords of one: a block's rows, or pairs of rows, times LANES
};

// Turns LANES vectors of LANES floats around: log2(LANES) rounds of interleaving halves.
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

// The first n of 8 or 16 numbers, or all of them; zeros behind.
template <bool SOME>
INLINE __m128i load_eight(const char* p, int64_t n) {
  return SOME ? _mm_maskz_loadu_epi16((__mmask8)((1 << n) - 1), p)
              : _mm_loadu_si128((const __m128i*)p);
}
template <bool SOME>
INLINE __m512i load_sixteen(const char* p, int64_t n) {
  return _mm512_cvtepu16_epi32(SOME ? _mm256_maskz_loadu_epi16((__mmask16)((1 << n) - 1), p)
                                    : _mm256_loadu_si256((const __m256i*)p));
}

// Eight columns (or the first n) of 16 rows, `pitch` bytes apart, as pairs: rows 4 j + i in lane j
// of x[i]; turning each lane's 4 x 4 dwords around puts one pair of columns of all 16 rows into
// each vector.
template <bool SOME>
INLINE void key_pairs(const char* from, int64_t pitch, int64_t n, __m512i pairs[4]) {
  const char *p1 = from + 4 * pitch, *p2 = from + 8 * pitch, *p3 = from + 12 * pitch;
  __m512i x[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    x[i] = _mm512_castsi128_si512(load_eight<SOME>(from + i * pitch, n));
    x[i] = _mm512_mask_broadcast_i32x4(x[i], 0x00f0, load_eight<SOME>(p1 + i * pitch, n));
    x[i] = _mm512_mask_broadcast_i32x4(x[i], 0x0f00, load_eight<SOME>(p2 + i * pitch, n));
    x[i] = _mm512_mask_broadcast_i32x4(x[i], 0xf000, load_eight<SOME>(p3 + i * pitch, n));
  }
  const __m512i a = _mm512_unpacklo_epi32(x[0], x[1]), b = _mm512_unpacklo_epi32(x[2], x[3]);
  const __m512i c = _mm512_unpackhi_epi32(x[0], x[1]), d = _mm512_unpackhi_epi32(x[2], x[3]);
  pairs[0] = _mm512_unpacklo_epi64(a, b);
  pairs[1] = _mm512_unpackhi_epi64(a, b);
  pairs[2] = _mm512_unpacklo_epi64(c, d);
  pairs[3] = _mm512_unpackhi_epi64(c, d);
}

template <bool SOME>
INLINE void pack_eight(const char* from, int64_t pitch, int64_t n, float* to) {
  __m512i pairs[4];
  key_pairs<SOME>(from, pitch, n, pairs);
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++)
    if (!SOME || 2 * i < n) _mm512_store_si512(to + i * LANES, pairs[i]);
}

// Sixteen columns (or the first n) of two rows, interleaved.
template <bool SOME>
INLINE __m512i value_pair(const char* from, int64_t pitch, int64_t n) {
  const __m512i even = load_sixteen<SOME>(from, n), odd = load_sixteen<SOME>(from + pitch, n);
  return _mm512_or_si512(even, _mm512_slli_epi32(odd, 16));
}

template <bool SOME>
INLINE void pack_sixteen(const char* from, int64_t pitch, int64_t n, float* to) {
#pragma GCC unroll 8
  for (int i = 0; i < 8; i++)
    _mm512_store_si512(to + i * LANES, value_pair<SOME>(from + 2 * i * pitch, pitch, n));
}

// 16 rows in pairs of bfloat16, without a detour. No load leaves its row.
INLINE void pack_pairs(const bf16* rows, int64_t stride, const Widths& w, float* keys,
                       float* values) {
  const char* from = (const char*)rows;
  const int64_t pitch = stride * 2;
  int64_t column = 0;
  for (; column + 8 <= w.width; column += 8)
    pack_eight<false>(from + column * 2, pitch, 8, keys + column / 2 * LANES);
  if (column < w.width)
    pack_eight<true>(from + column * 2, pitch, w.width - column, keys + column / 2 * LANES);
  for (column = 0; column + 16 <= w.rank; column += 16, values += w.value_panel)
    pack_sixteen<false>(from + column * 2, pitch, 16, values);
  if (column < w.rank) pack_sixteen<true>(from + column * 2, pitch, w.rank - column, values);
}

#endif

// One panel: LANES cache rows that lie `stride` apart.
template <class T, bool DOT>
INLINE void pack_panel(const T* rows, int64_t stride, const Widths& w, float* staged, float* keys,
                       float* values) {
#if defined(__AVX512BF16__)
  if constexpr (DOT) {
    pack_pairs(rows, stride, w, keys, values);
    return;
  }
#endif
  pack_floats(rows, stride, w, staged, keys, values);
}
