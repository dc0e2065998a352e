// Integer products of 16 columns: C = A B, A in two limbs, of numbers of at most 16 bits.
//
// A: [chunks][2 limbs][HEIGHT rows][64 bytes], tiles TILE_BYTES apart; B: [chunks][16][16][4], four
// bytes of which are added at once; C: [2 limbs][16 rows][16]. For keys, A is signed and B is not;
// for values, B is signed and A is not. `meanwhile(chunk)` is called for each chunk: work for other
// units of the processor than those that multiply.
#pragma once

#include "levels.h"

#if defined(__AVX512VBMI__) && defined(__AVX512VNNI__)

constexpr int C_LIMB = 256;  // numbers of one limb's sums

#if defined(__AMX_INT8__)

// The most rows of A in one product.
constexpr int64_t HEIGHT = 16;

// Sets the tiles' shapes for `rows` rows of A, until they are released.
struct Tiles {
  struct alignas(64) Config {
    uint8_t palette, start, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
  };

  explicit Tiles(int64_t rows) {
    Config config = {};
    config.palette = 1;
    for (int i = 0; i < 8; i++) {
      config.bytes[i] = 64;
      config.rows[i] = i < 4 ? rows : 16;
    }
    _tile_loadconfig(&config);
  }
  ~Tiles() { _tile_release(); }
};

template <bool KEYS, class F>
INLINE void multiply(const uint8_t* a, const uint8_t* b, int64_t chunks, int64_t, int32_t* c,
                     F meanwhile) {
  _tile_zero(0);
  _tile_zero(1);
  for (int64_t chunk = 0; chunk < chunks; chunk++, a += 2 * TILE_BYTES, b += TILE_BYTES) {
    meanwhile(chunk);
    _tile_loadd(4, b, 64);
    _tile_loadd(2, a, 64);
    _tile_loadd(3, a + TILE_BYTES, 64);
    if (KEYS) {
      _tile_dpbsud(0, 2, 4);
      _tile_dpbsud(1, 3, 4);
    } else {
      _tile_dpbusd(0, 2, 4);
      _tile_dpbusd(1, 3, 4);
    }
  }
  _tile_stored(0, c, 64);
  _tile_stored(1, c + C_LIMB, 64);
}

#else

constexpr int64_t HEIGHT = 9;

struct Tiles {
  explicit Tiles(int64_t) {}
};

template <bool KEYS, int ROWS>
static void multiply_rows(const uint8_t* a, const uint8_t* b, int64_t chunks, int32_t* c) {
  __m512i sum[2][ROWS];
  for (auto& limb : sum)
    for (auto& own : limb) own = _mm512_setzero_si512();
  for (; chunks > 0; chunks--, a += 2 * TILE_BYTES, b += TILE_BYTES)
    for (int quad = 0; quad < 16; quad++) {
      const __m512i column = _mm512_load_si512(b + quad * 64);
#pragma GCC unroll 2
      for (int limb = 0; limb < 2; limb++)
#pragma GCC unroll 16
        for (int m = 0; m < ROWS; m++) {
          int32_t four;
          memcpy(&four, a + limb * TILE_BYTES + m * 64 + quad * 4, 4);
          const __m512i row = _mm512_set1_epi32(four);
          sum[limb][m] = KEYS ? _mm512_dpbusd_epi32(sum[limb][m], column, row)
                              : _mm512_dpbusd_epi32(sum[limb][m], row, column);
        }
    }
  for (int limb = 0; limb < 2; limb++)
    for (int m = 0; m < ROWS; m++)
      _mm512_store_si512(c + limb * C_LIMB + m * LANES, sum[limb][m]);
}

template <bool KEYS, class F>
INLINE void multiply(const uint8_t* a, const uint8_t* b, int64_t chunks, int64_t rows, int32_t* c,
                     F meanwhile) {
  for (int64_t chunk = 0; chunk < chunks; chunk++) meanwhile(chunk);
  switch (rows) {
#define CASE(n) \
  case n: return multiply_rows<KEYS, n>(a, b, chunks, c);
    CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(9)
#undef CASE
  }
}

#endif
#endif
