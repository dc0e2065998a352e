// Reads rows of a coded cache as numbers: key rows, rotary mean and first row included.
#pragma once

#include "angles.h"
#include "coded.h"

// Scratch of one worker; LANES more than the numbers need, because whole vectors are stored.
struct Decoding {
  int8_t* levels;  // [width]
  float *row, *mean, *cos, *sin;  // [width], [rope], [rope/2] twice
};

// The levels of a row's columns.
static void levels_of(const Coded& k, const char* group, int64_t own, int8_t* to) {
  const int64_t units = k.latent_units + k.rotary_units;
  const uint8_t* from = (const uint8_t*)group;
  for (int64_t u = 0; u < units; u++, to += UNIT) {
    const int64_t bits = k.unit_bits[u];
    const int8_t* const levels = k.books[bits].levels;
    const uint8_t* const own_bytes = from + own * bits;
    from += GROUP_ROWS * bits;
#if defined(__AVX2__)
    // Eight bytes may be read everywhere in a group, as scales are behind the last unit.
    uint64_t word;
    memcpy(&word, own_bytes, 8);
    word = _pdep_u64(word, 0x0101010101010101u * ((1u << bits) - 1));
    if (bits <= 4) {
      const __m128i table = _mm_loadu_si128((const __m128i*)levels);
      _mm_storel_epi64((__m128i*)to, _mm_shuffle_epi8(table, _mm_cvtsi64_si128((int64_t)word)));
    } else {
      for (int i = 0; i < UNIT; i++) to[i] = levels[word >> 8 * i & 255];
    }
#else
    uint64_t word = 0;
    for (int64_t i = 0; i < bits; i++) word |= (uint64_t)own_bytes[i] << 8 * i;
    for (int i = 0; i < UNIT; i++) to[i] = levels[word >> bits * i & ((1u << bits) - 1)];
#endif
  }
}

// Makes `base` the first of the next positions, of which there are TURNS at most.
INLINE void turn_to(const Coded& k, int64_t base, const Decoding& d) {
  angles(base, k.inv_freq, rope_of(k) / 2, d.cos, d.sin);
}

// d.mean = R_n m of position n = base + r: the mean turned by r, and then by the base.
INLINE void turned_mean(const Coded& k, int64_t r, const Decoding& d) {
  const int64_t rope = rope_of(k), half = rope / 2;
  const float *m1 = k.turned_mean + r * rope, *m2 = m1 + half;
  for (int64_t j = 0; j < half; j += LANES)
    store(d.mean + j, load(m1 + j) * load(d.cos + j) - load(m2 + j) * load(d.sin + j));
  for (int64_t j = 0; j < half; j += LANES)
    store(d.mean + half + j, load(m2 + j) * load(d.cos + j) + load(m1 + j) * load(d.sin + j));
}

// Decodes a group's row, the one of position base + r, into d.row.
static void decode_row(const Cache& c, const char* group, int64_t own, int64_t r, bool first,
                       const Decoding& d) {
  const Coded& k = *c.coded;
  const int64_t rank = rank_of(k), rope = rope_of(k);
  const uint8_t* const scales = scales_at(c, group);
  levels_of(k, group, own, d.levels);
  const float latent = k.scales[scales[own]] / LEVEL_ONE;
  for (int64_t j = 0; j < rank; j += LANES) store(d.row + j, load(d.levels + j) * latent);
  if (rope) {
    const float rotary = k.scales[scales[GROUP_ROWS + own]] / LEVEL_ONE;
    turned_mean(k, r, d);
    for (int64_t j = 0; j < rope; j += LANES)
      store(d.row + rank + j, load(d.levels + rank + j) * rotary + load(d.mean + j));
  }
  if (first)
    for (int64_t j = 0; j < c.width; j++) d.row[j] += k.first_row[j];
}
