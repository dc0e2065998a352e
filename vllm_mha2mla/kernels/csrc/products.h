// Integer products of two panels of 16 columns: C = A B, A in two limbs, of numbers of at most 16
// bits.
//
// A: [chunks][2 limbs][HEIGHT rows][64 bytes]; B: [chunks] of two tiles [16][16][4], four bytes of
// which are added at once; C: [2 panels][2 limbs][16 rows][16]. For keys A is signed, for values it
// is not; B is signed. `meanwhile(chunk)` is called for each chunk: work for other units of the
// processor than those that multiply.
#pragma once

#include "levels.h"

#if defined(__AVX512VBMI__) && defined(__AVX512VNNI__)

constexpr int C_LIMB = 256, C_PRODUCT = 4 * C_LIMB;  // numbers of one limb's sums, and of all four
constexpr int64_t PAIR_BYTES = 2 * TILE_BYTES;

// Where the pairs of B's tiles lie: one `stride` behind the other, after the last the first again.
struct Pairs {
  const uint8_t* base;
  int64_t at, stride, end;
  int64_t second;  // bytes from a pair's first tile to its second

  const uint8_t* next() {
    const uint8_t* const own = base + at;
    at = at + stride < end ? at + stride : 0;
    return own;
  }
};

#if defined(__AMX_INT8__)

// The most rows of A in one product, and whether B may be read between the chunks of a product.
constexpr int64_t HEIGHT = 16;
constexpr bool READS_BETWEEN = true;

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
      config.rows[i] = i < 6 ? rows : 16;
    }
    _tile_loadconfig(&config);
  }
  ~Tiles() { _tile_release(); }
};

template <bool KEYS, class F>
INLINE void multiply(const uint8_t* a, Pairs& b, int64_t chunks, int64_t, const int32_t*, int64_t,
                     int32_t* c, F meanwhile) {
#define MULTIPLY(to, x, y) \
  if (KEYS) _tile_dpbssd(to, x, y); \
  else _tile_dpbusd(to, x, y);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t chunk = 0; chunk < chunks; chunk++, a += 2 * TILE_BYTES) {
    meanwhile(chunk);
    const uint8_t* const own = b.next();
    _tile_loadd(6, own, 64);
    _tile_loadd(4, a, 64);
    MULTIPLY(0, 4, 6)
    _tile_loadd(5, a + TILE_BYTES, 64);
    MULTIPLY(1, 5, 6)
    _tile_loadd(7, own + b.second, 64);
    MULTIPLY(2, 4, 7)
    MULTIPLY(3, 5, 7)
  }
  _tile_stored(0, c, 64);
  _tile_stored(1, c + C_LIMB, 64);
  _tile_stored(2, c + 2 * C_LIMB, 64);
  _tile_stored(3, c + 3 * C_LIMB, 64);
#undef MULTIPLY
}

#else

constexpr int64_t HEIGHT = 9;
constexpr bool READS_BETWEEN = false;

struct Tiles {
  explicit Tiles(int64_t) {}
};

// One factor has to be unsigned: for keys B's bytes become levels + 128, and the sums begin at what
// that makes too much.
template <bool KEYS, int ROWS>
static void multiply_rows(const uint8_t* a, Pairs& b, int64_t panel, int64_t chunks,
                          const int32_t* sums, int64_t sums_stride, int32_t* c) {
  const __m512i flip = _mm512_set1_epi8((char)0x80);
  __m512i sum[2][ROWS];
#pragma GCC unroll 2
  for (int limb = 0; limb < 2; limb++)
#pragma GCC unroll 16
    for (int m = 0; m < ROWS; m++)
      sum[limb][m] = KEYS ? _mm512_set1_epi32(-128 * sums[m * sums_stride + limb])
                          : _mm512_setzero_si512();
  for (; chunks > 0; chunks--, a += 2 * TILE_BYTES) {
    const uint8_t* const own = b.next() + panel * b.second;
    for (int quad = 0; quad < 16; quad++) {
      const __m512i read = _mm512_load_si512(own + quad * 64);
      const __m512i column = KEYS ? _mm512_xor_si512(read, flip) : read;
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
  }
  for (int limb = 0; limb < 2; limb++)
    for (int m = 0; m < ROWS; m++)
      _mm512_store_si512(c + limb * C_LIMB + m * LANES, sum[limb][m]);
}

template <bool KEYS, class F>
INLINE void multiply(const uint8_t* a, Pairs& b, int64_t chunks, int64_t rows, const int32_t* sums,
                     int64_t sums_stride, int32_t* c, F meanwhile) {
  for (int64_t chunk = 0; chunk < chunks; chunk++) meanwhile(chunk);
  const Pairs begin = b;
  for (int64_t panel = 0; panel < 2; panel++, c += 2 * C_LIMB) {
    b = begin;
    switch (rows) {
#define CASE(n) \
  case n: multiply_rows<KEYS, n>(a, b, panel, chunks, sums, sums_stride, c); break;
      CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(9)
#undef CASE
    }
  }
}

#endif
#endif
