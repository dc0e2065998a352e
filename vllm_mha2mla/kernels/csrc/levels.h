// Units of codes to bytes of levels, in the order in which integer products read them.
//
// Such a product adds four bytes to each dword. Keys, summed over columns, come as
// [quads of columns][16 rows][4], two groups of rows at once; values, summed over rows, as
// [quads of rows][16 columns][4]. Either way a row's bytes are spread, each byte's code is shifted
// to its low bits, and a table of 64 levels, which repeats itself beyond the code, is looked up.
#pragma once

#include <type_traits>

#include "coded.h"

#if defined(__AVX512VBMI__) && defined(__AVX512VNNI__)

constexpr int64_t PANEL_ROWS = 16, TILE_BYTES = 1024;

// The column that byte i of a unit's keys belongs to: of codes that are taken apart in pairs, first
// all even ones.
INLINE constexpr int key_column(int64_t bits, int i) {
  return bits <= 4 ? i % 4 * 2 + i / 4 : i;
}

// Where each byte comes from, and how far its code is from the lowest bit.
template <int BITS>
struct Spread {
  uint8_t key_bytes[2][64] = {}, key_shifts[64] = {};
  uint8_t value_bytes[64] = {}, value_shifts[64] = {};
  uint32_t value_counts[16] = {};

  constexpr Spread() {
    for (int row = 0; row < 16; row++)
      for (int i = 0; i < 4; i++) {
        const int to = 4 * row + i, last = BITS - 1;
        if (BITS < 4) {  // pairs of columns
          key_bytes[0][to] = (uint8_t)(row / 8 * 32 + row % 8 * BITS + (i < last ? i : last));
          key_shifts[to] = (uint8_t)(row % 2 * 32 + 2 * BITS * i);
        } else {  // four columns begin with a byte
          for (int half = 0; half < 2; half++) {
            const int begin = (row < 8 ? half : 1 - half) * BITS / 2, byte = begin + i;
            key_bytes[half][to] = (uint8_t)(row % 8 * BITS + (byte < last ? byte : last));
          }
          key_shifts[to] = (uint8_t)(row % 2 * 32 + BITS * i);
        }
      }
    for (int quad = 0; quad < 2; quad++)
      for (int column = 0; column < 8; column++)
        for (int i = 0; i < 4; i++) {
          const int row = quad * 4 + i, bit = column * BITS;
          if (8 % BITS == 0) {
            value_bytes[quad * 32 + column * 4 + i] = (uint8_t)(row * BITS + bit / 8);
            value_counts[quad * 8 + column] = bit % 8;
          } else {  // two bytes of each row have a pair of columns
            const int pair = column / 2 * 2 * BITS, byte = pair / 8 + column % 2;
            value_bytes[quad * 32 + column / 2 * 8 + i * 2 + column % 2] =
                (uint8_t)(row * BITS + (byte < BITS ? byte : BITS - 1));
            value_shifts[quad * 32 + column * 4 + i] =
                (uint8_t)(16 * i + pair % 8 + column % 2 * BITS);
          }
        }
  }
};
template <int BITS>
static constexpr Spread<BITS> SPREAD;

// The bytes of a unit that are the first half of its rows' bits, or the second.
INLINE constexpr uint64_t half_of_rows(int bits, int half) {
  uint64_t mask = 0;
  for (int i = 0; i < 8 * bits; i++)
    if (i % bits / (bits / 2) == half) mask |= 1ull << i;
  return mask;
}

INLINE __m512i bytes_at(const void* p) { return _mm512_loadu_si512(p); }

// One unit of 16 rows as keys, of two groups  # to: [2 quads][16 rows][4]
template <int BITS>
INLINE void key_unit(const uint8_t* const group[2], const Codebook& book, uint8_t* to) {
  constexpr const Spread<BITS>& s = SPREAD<BITS>;
  constexpr __mmask64 own = BITS == 8 ? ~0ull : (1ull << 8 * BITS % 64) - 1;
  __m512i x[2];
  const __m512i levels = bytes_at(book.levels);
  if constexpr (BITS <= 4) {
    const __m512i first = _mm512_maskz_loadu_epi8(own, group[0]);
    const __m512i both = _mm512_mask_loadu_epi8(first, own << 32, group[1] - 32);
    if constexpr (BITS == 4) {
      x[0] = both;
      x[1] = _mm512_srli_epi16(both, 4);
      for (int half = 0; half < 2; half++) x[half] = _mm512_permutexvar_epi8(x[half], levels);
    } else {
      const __m512i spread = _mm512_permutexvar_epi8(bytes_at(s.key_bytes[0]), both);
      const __m512i pairs = _mm512_multishift_epi64_epi8(bytes_at(s.key_shifts), spread);
      const __m512i second = bytes_at(book.second_levels);
      x[0] = _mm512_permutexvar_epi8(pairs, levels);
      x[1] = _mm512_permutexvar_epi8(pairs, second);
    }
  } else {
    // Four columns are half of a row's bytes: the other group's take the place of the other half.
    constexpr __mmask64 halves[2] = {half_of_rows(BITS, 0), half_of_rows(BITS, 1)};
    for (int half = 0; half < 2; half++) {
      const uint8_t* const second = group[1] + (half ? BITS / 2 : -BITS / 2);
      x[half] = _mm512_maskz_loadu_epi8(halves[half], group[0]);
      x[half] = _mm512_mask_loadu_epi8(x[half], halves[1 - half], second);
      x[half] = _mm512_permutexvar_epi8(bytes_at(s.key_bytes[half]), x[half]);
      if constexpr (BITS < 8) {
        x[half] = _mm512_multishift_epi64_epi8(bytes_at(s.key_shifts), x[half]);
        x[half] = _mm512_permutexvar_epi8(x[half], levels);
      } else {
        x[half] = _mm512_xor_si512(x[half], _mm512_set1_epi8((char)0x80));
      }
    }
  }
  _mm512_store_si512(to, x[0]);
  _mm512_store_si512(to + 64, x[1]);
}

// One unit of a group's rows as values: [8 columns][4] of the first four rows to `to`, of the
// others 64 bytes behind.
template <int BITS>
INLINE void value_unit(const uint8_t* group, const Codebook& book, uint8_t* to) {
  constexpr const Spread<BITS>& s = SPREAD<BITS>;
  constexpr __mmask64 own = BITS == 8 ? ~0ull : (1ull << 8 * BITS % 64) - 1;
  __m512i x = _mm512_maskz_loadu_epi8(own, group);
  x = _mm512_permutexvar_epi8(bytes_at(s.value_bytes), x);
  if constexpr (BITS == 8) {
    x = _mm512_xor_si512(x, _mm512_set1_epi8((char)0x80));
  } else {
    x = 8 % BITS == 0 ? _mm512_srlv_epi32(x, bytes_at(s.value_counts))
                      : _mm512_multishift_epi64_epi8(bytes_at(s.value_shifts), x);
    x = _mm512_permutexvar_epi8(x, bytes_at(book.levels));
  }
  _mm256_store_si256((__m256i*)to, _mm512_castsi512_si256(x));
  _mm256_store_si256((__m256i*)(to + 64), _mm512_extracti64x4_epi64(x, 1));
}

// Calls f<bits>() with a number of bits that is known only now.
template <class F>
INLINE void with_bits(int64_t bits, F f) {
  switch (bits) {
#define CASE(n) \
  case n: return f(std::integral_constant<int, n>());
    CASE(1) CASE(2) CASE(3) CASE(4) CASE(6) CASE(8)
#undef CASE
  }
}

// Goes through the units of two groups, and prefetches the same bytes of two that are needed later.
struct KeyReader {
  const Coded* k;
  const uint8_t *groups[2], *ahead[2];
  int64_t unit, at, fetched;  // bytes of a group
};

// Reads the units before `last` as keys  # to: [units][2][16][4]
INLINE void read_keys(KeyReader& r, int64_t last, uint8_t* to) {
  while (r.unit < last) {
    const int64_t run = r.k->unit_runs[r.unit], left = last - r.unit;
    const int64_t count = run < left ? run : left;
    with_bits(r.k->unit_bits[r.unit], [&](auto n) {
      constexpr int BITS = decltype(n)::value;
      for (int64_t i = 0; i < count; i++, r.at += GROUP_ROWS * BITS, to += 2 * 64) {
        const uint8_t* const group[2] = {r.groups[0] + r.at, r.groups[1] + r.at};
        key_unit<BITS>(group, r.k->books[BITS], to);
        if (r.fetched <= r.at) {
          for (const uint8_t* later : r.ahead) __builtin_prefetch(later + r.fetched, 0, 2);
          r.fetched += 64;
        }
      }
    });
    r.unit += count;
  }
}

// A unit of many groups as values, 128 bytes from group to group; `at`: of the unit in a group.
INLINE void value_units(const Coded& k, const uint8_t* const* groups, int64_t count, int64_t bits,
                        int64_t at, uint8_t* to) {
  with_bits(bits, [&](auto n) {
    constexpr int BITS = decltype(n)::value;
    for (int64_t g = 0; g < count; g++)
      value_unit<BITS>(groups[g] + at, k.books[BITS], to + g * 2 * 64);
  });
}

#endif
