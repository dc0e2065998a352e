// Levels of coded rows as the second operand of AMX products, straight from their codes.
//
// A tile of that operand is [16][16 columns of the product][4 numbers summed over], 64 bytes a row.
#pragma once

#include "amx_buffers.h"

#if defined(__AMX_INT8__) && defined(__AVX512VBMI__)

INLINE __m512i aligned_bytes(const uint8_t* p) { return _mm512_load_si512(p); }

// n bytes from p on; nothing behind them is touched.
INLINE __m512i first_bytes(const char* p, int64_t n) {
  return _mm512_maskz_loadu_epi8(_bzhi_u64(~0ull, (unsigned)n), p);
}

// Levels of a unit  # [8 rows][8 columns]
INLINE __m512i unit_levels(const char* unit, int64_t b, const Levels& levels) {
  const __m512i codes = first_bytes(unit, GROUP_ROWS * b);
  if (b == 8) return _mm512_xor_si512(codes, _mm512_set1_epi8((char)0x80));
  const Shuffle& s = UNIT_SHUFFLES[b];
  const __m512i apart = _mm512_multishift_epi64_epi8(
      aligned_bytes(s.shifts), _mm512_permutexvar_epi8(aligned_bytes(s.bytes), codes));
  return _mm512_permutexvar_epi8(apart, _mm512_load_si512(levels.of[b]));
}

// One unit of 16 rows as keys: two rows of a tile, four columns each.
INLINE void key_unit(const char* first, const char* second, int64_t b, const Levels& levels,
                     char* to) {
  __m512i low, high;
  if (b <= FEW_BITS) {
    const KeyShuffle& s = KEY_SHUFFLES[b];
    const __mmask64 some = _bzhi_u64(~0ull, (unsigned)(GROUP_ROWS * b));
    __m512i both = _mm512_maskz_loadu_epi8(some, first);
    both = _mm512_mask_loadu_epi8(both, some << 32, second - 32);
    both = _mm512_permutexvar_epi8(aligned_bytes(s.bytes), both);
    const __m512i table = _mm512_load_si512(levels.of[b]);
    low = _mm512_multishift_epi64_epi8(aligned_bytes(s.shifts[0]), both);
    high = _mm512_multishift_epi64_epi8(aligned_bytes(s.shifts[1]), both);
    low = _mm512_permutexvar_epi8(low, table);
    high = _mm512_permutexvar_epi8(high, table);
  } else {
    const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    const __m512i x = unit_levels(first, b, levels), y = unit_levels(second, b, levels);
    low = _mm512_permutex2var_epi32(x, even, y);
    high = _mm512_permutex2var_epi32(x, _mm512_add_epi32(even, _mm512_set1_epi32(1)), y);
  }
  _mm512_store_si512(to, low);
  _mm512_store_si512(to + 64, high);
}

// Two units of a group as values: two rows of a tile, four cache rows each. `second` is null where
// there is no second unit; it lies right behind the first.
INLINE void value_units(const char* first, int64_t b, const char* second, int64_t b2,
                        const Levels& levels, char* to) {
  __m512i low, high;
  if (b <= FEW_BITS && b == b2 && second) {
    const Shuffle &s = VALUE_SHUFFLES[b][0], &t = VALUE_SHUFFLES[b][1];
    const __m512i both = first_bytes(first, 2 * GROUP_ROWS * b);
    const __m512i table = _mm512_load_si512(levels.of[b]), shifts = aligned_bytes(s.shifts);
    low = _mm512_permutexvar_epi8(aligned_bytes(s.bytes), both);
    high = _mm512_permutexvar_epi8(aligned_bytes(t.bytes), both);
    low = _mm512_permutexvar_epi8(_mm512_multishift_epi64_epi8(shifts, low), table);
    high = _mm512_permutexvar_epi8(_mm512_multishift_epi64_epi8(shifts, high), table);
  } else {
    const __m512i x = unit_levels(first, b, levels);
    const __m512i y = second ? unit_levels(second, b2, levels) : _mm512_setzero_si512();
    low = _mm512_permutex2var_epi8(x, aligned_bytes(INTERLEAVING.bytes[0]), y);
    high = _mm512_permutex2var_epi8(x, aligned_bytes(INTERLEAVING.bytes[1]), y);
  }
  _mm512_store_si512(to, low);
  _mm512_store_si512(to + 64, high);
}

#endif
