// Writes rows into a coded cache.
#pragma once

#include <math.h>

#include "coded.h"

// The byte of the scale of units [first, last): the root mean square of what their columns are in
// units of their codebooks' gains.
static uint8_t scale_byte(const Coded& k, const float* row, int64_t first, int64_t last) {
  float sum = 0;
  for (int64_t u = first; u < last; u++) {
    float squares = 0;
    for (int64_t i = 0; i < UNIT; i++) squares += row[u * UNIT + i] * row[u * UNIT + i];
    sum += squares * k.books[k.unit_bits[u]].inverse_gain2;
  }
  const float mean = sum / ((last - first) * UNIT);
  if (!(mean > 7.5231638e-37f)) return 0;  // 2^-120, or no number
  const float byte = nearbyintf(log2f(mean) * 4) + 128;
  return (uint8_t)(byte < 0 ? 0 : byte > 255 ? 255 : byte);
}

// Codes of eight numbers that are relative to the row's scale: how many borders lie below each.
INLINE uint64_t codes_of(const float x[UNIT], const Codebook& book, int64_t bits) {
  uint64_t word = 0;
  if (bits == 8) {  // borders are evenly spaced
    for (int i = 0; i < UNIT; i++) {
      const float code = ceilf(x[i] * LEVEL_ONE - 0.5f) + 128;
      word |= (uint64_t)(code > 255 ? 255 : code > 0 ? code : 0) << 8 * i;
    }
    return word;
  }
  int32_t below[UNIT] = {};
  for (int64_t n = 0; n < (1 << bits) - 1; n++)
    for (int i = 0; i < UNIT; i++) below[i] += book.borders[n] < x[i];
  for (int i = 0; i < UNIT; i++) word |= (uint64_t)below[i] << bits * i;
  return word;
}

// Stores one row, from which the first row has been taken if it is a text's first.
static void encode_row(const Cache& c, int64_t slot, const float* row) {
  const Coded& k = *c.coded;
  const int64_t offset = slot % c.block_size, own = offset % GROUP_ROWS;
  char* const group = coded_group(c, slot / c.block_size, offset);
  const int64_t units = k.latent_units + k.rotary_units;
  const uint8_t latent = k.latent_units ? scale_byte(k, row, 0, k.latent_units) : 0;
  const uint8_t rotary = k.rotary_units ? scale_byte(k, row, k.latent_units, units) : 0;
  uint8_t* to = (uint8_t*)group;
  for (int64_t u = 0; u < units; u++) {
    const int64_t bits = k.unit_bits[u];
    const float scale = k.scales[u < k.latent_units ? latent : rotary];
    float relative[UNIT];
    for (int i = 0; i < UNIT; i++) relative[i] = row[u * UNIT + i] / scale;
    const uint64_t word = codes_of(relative, k.books[bits], bits);
    for (int64_t i = 0; i < bits; i++) to[own * bits + i] = (uint8_t)(word >> 8 * i);
    to += GROUP_ROWS * bits;
  }
  to[own] = latent;
  to[GROUP_ROWS + own] = rotary;
}
