// Numbers as two bytes for integer products: x = step * (256 high + low).
#pragma once

#include "levels.h"

#if defined(__AVX512VBMI__) && defined(__AVX512VNNI__)

// The largest high byte is 127, so that rounding the low byte never carries beyond it.
constexpr float LARGEST_SIGNED = 127 * 256, LARGEST_UNSIGNED = 255 * 256;

// One row of A of a part: [chunks][64] bytes for each limb, rows of a tile 64 bytes apart.
struct LimbRow {
  uint8_t *high, *low;
  int64_t chunk;  // bytes from one chunk's tile to the next
  float step;
  int32_t sums[2];  // of each limb's bytes
};

// Splits a row of units, whose columns go where `bits` of keys put them  # x: [units * 8]
// Without `bits` they keep their order.
static void split_row(const float* x, int64_t units, const int64_t* bits, LimbRow& to) {
  const __m128i pairs = _mm_setr_epi8(0, 2, 4, 6, 1, 3, 5, 7, -1, -1, -1, -1, -1, -1, -1, -1);
  const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
  __m256 largest = _mm256_setzero_ps();
  for (int64_t u = 0; u < units; u++)
    largest = _mm256_max_ps(_mm256_and_ps(_mm256_loadu_ps(x + u * UNIT), magnitude), largest);
  float each[UNIT], top = 0;
  _mm256_storeu_ps(each, largest);
  for (float one : each) top = one > top ? one : top;
  to.step = top / LARGEST_SIGNED;
  const __m256 scale = _mm256_set1_ps(top > 1e-30f ? LARGEST_SIGNED / top : 0);
  __m256i high_sum = _mm256_setzero_si256(), low_sum = high_sum;
  for (int64_t u = 0; u < units; u++) {
    const __m256i whole = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + u * UNIT), scale));
    const __m256i high = _mm256_srai_epi32(_mm256_add_epi32(whole, _mm256_set1_epi32(128)), 8);
    const __m256i low = _mm256_sub_epi32(whole, _mm256_slli_epi32(high, 8));
    high_sum = _mm256_add_epi32(high_sum, high);
    low_sum = _mm256_add_epi32(low_sum, low);
    __m128i bytes[2] = {_mm256_cvtepi32_epi8(high), _mm256_cvtepi32_epi8(low)};
    const int64_t at = u / 8 * to.chunk + u % 8 * 8;
    for (int limb = 0; limb < 2; limb++) {
      if (bits && bits[u] <= 4) bytes[limb] = _mm_shuffle_epi8(bytes[limb], pairs);
      _mm_storel_epi64((__m128i*)((limb ? to.low : to.high) + at), bytes[limb]);
    }
  }
  const __m256i sums[2] = {high_sum, low_sum};
  for (int limb = 0; limb < 2; limb++)
    to.sums[limb] = _mm512_reduce_add_epi32(_mm512_zextsi256_si512(sums[limb]));
}

// Splits 64 weights that are not negative and at most LARGEST_UNSIGNED once scaled.
INLINE void split_weights(const float* x, float scale, uint8_t* high, uint8_t* low) {
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512 factor = _mm512_set1_ps(scale);
  __m512i whole[4], words[2];
  for (int i = 0; i < 4; i++)
    whole[i] = _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x + 16 * i), factor));
  for (int i = 0; i < 2; i++) words[i] = _mm512_packus_epi32(whole[2 * i], whole[2 * i + 1]);
  const __m512i tops = _mm512_packus_epi16(_mm512_srli_epi16(words[0], 8),
                                           _mm512_srli_epi16(words[1], 8));
  const __m512i rest = _mm512_packus_epi16(_mm512_and_si512(words[0], _mm512_set1_epi16(255)),
                                           _mm512_and_si512(words[1], _mm512_set1_epi16(255)));
  _mm512_store_si512(high, _mm512_permutexvar_epi32(order, tops));
  _mm512_store_si512(low, _mm512_permutexvar_epi32(order, rest));
}

#endif
