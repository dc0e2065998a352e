// Where codes lie, as byte and bit shuffles take it: constants for every number of bits.
//
// A unit of a group is [8 rows][b bytes]. `_mm512_permutexvar_epi8` brings the bytes that hold the
// codes of a quad word of the result into it, and `_mm512_multishift_epi64_epi8` takes eight bits
// from any place of a quad word for each of its bytes. What lies above a code's own b bits is not
// removed: tables of levels repeat themselves instead.
#pragma once

#include "coded.h"

struct Shuffle {
  alignas(64) uint8_t bytes[64];
  alignas(64) uint8_t shifts[64];
};

// Keys, up to 4 bits, of two groups whose units lie 32 bytes apart in a vector: the first, or the
// last, four columns of 16 rows  # [16 rows][4 columns]
struct KeyShuffle {
  alignas(64) uint8_t bytes[64];
  alignas(64) uint8_t shifts[2][64];
};

constexpr KeyShuffle key_shuffle(int b) {
  KeyShuffle s = {};
  for (int q = 0; q < 8; q++)  // rows 2 q and 2 q + 1
    for (int i = 0; i < 8; i++) {
      const int row = 2 * q + (i >= b);
      if (i < 2 * b) s.bytes[q * 8 + i] = uint8_t(row / 8 * 32 + row % 8 * b + i % b);
      for (int half = 0; half < 2; half++)
        s.shifts[half][q * 8 + i] = uint8_t(i / 4 * 8 * b + (half * 4 + i % 4) * b);
    }
  return s;
}

// Values, up to 4 bits, of two units side by side: four rows, the first or the last of the group
// # [16 columns][4 rows]
constexpr Shuffle value_shuffle(int b, int half) {
  Shuffle s = {};
  for (int q = 0; q < 8; q++)  // columns 2 q and 2 q + 1
    for (int i = 0; i < 8; i++) {
      const int unit = q / 4, bit = q % 4 * 2 * b, row = half * 4 + i / 2;
      s.bytes[q * 8 + i] = uint8_t(unit * 8 * b + row * b + bit / 8 + i % 2);
      s.shifts[q * 8 + i] = uint8_t(i % 4 * 16 + bit % 8 + i / 4 * b);
    }
  return s;
}

// A unit of any number of bits  # [8 rows][8 columns]
constexpr Shuffle unit_shuffle(int b) {
  Shuffle s = {};
  for (int row = 0; row < 8; row++)
    for (int i = 0; i < 8; i++) {
      s.bytes[row * 8 + i] = uint8_t(row * b + (i < b ? i : 0));
      s.shifts[row * 8 + i] = uint8_t(i * b);
    }
  return s;
}

// From two units as [8 rows][8 columns]: four rows of both  # [16 columns][4 rows]
struct Interleaving {
  alignas(64) uint8_t bytes[2][64];
};
constexpr Interleaving interleaving() {
  Interleaving s = {};
  for (int half = 0; half < 2; half++)
    for (int column = 0; column < 16; column++)
      for (int i = 0; i < 4; i++)
        s.bytes[half][column * 4 + i] =
            uint8_t(column / 8 * 64 + (half * 4 + i) * 8 + column % 8);
  return s;
}

// Up to this many bits, codes take the short way.
constexpr int FEW_BITS = 4;
static constexpr KeyShuffle KEY_SHUFFLES[FEW_BITS + 1] = {key_shuffle(1), key_shuffle(1),
                                                          key_shuffle(2), key_shuffle(3),
                                                          key_shuffle(4)};
static constexpr Shuffle VALUE_SHUFFLES[FEW_BITS + 1][2] = {
    {value_shuffle(1, 0), value_shuffle(1, 1)}, {value_shuffle(1, 0), value_shuffle(1, 1)},
    {value_shuffle(2, 0), value_shuffle(2, 1)}, {value_shuffle(3, 0), value_shuffle(3, 1)},
    {value_shuffle(4, 0), value_shuffle(4, 1)}};
static constexpr Shuffle UNIT_SHUFFLES[9] = {
    unit_shuffle(1), unit_shuffle(1), unit_shuffle(2), unit_shuffle(3), unit_shuffle(4),
    unit_shuffle(5), unit_shuffle(6), unit_shuffle(7), unit_shuffle(8)};
static constexpr Interleaving INTERLEAVING = interleaving();

// The levels of every number of bits, each repeated to the size of a vector; not for 8 bits, whose
// codes are their levels plus 128.
struct Levels {
  alignas(64) int8_t of[8][64];
};

INLINE void repeat_levels(const Codebook* books, Levels& to) {
  for (int b = 1; b <= 6; b++)
    for (int i = 0; i < 64; i++) to.of[b][i] = books[b].levels[i & ((1 << b) - 1)];
}
