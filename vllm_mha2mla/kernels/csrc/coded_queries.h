// Queries as limbs, one part of a score after the other.
//
// With n = base + r, the mean's part of a score is the real part of
//
//   sum_j (conj(q_j) e^{i theta_j base} m_j) e^{i theta_j r}
//
// so one table of e^{i theta_j r} serves all rows r and requests, and factors change with the base.
#pragma once

#include "coded_buffers.h"
#include "limbs.h"

#if defined(__AVX512VBMI__) && defined(__AVX512VNNI__)

// Splits the numbers of row m of A that belong to one part.
INLINE void split_query(const CodedProgress& c, int64_t m, Part part, const float* x,
                        const int64_t* bits) {
  uint8_t* const to = c.b.query + m / c.s.height * c.s.query_tile +
                      c.s.first[part] * 2 * TILE_BYTES + m % c.s.height * 64;
  LimbRow row = {to, to + TILE_BYTES, 2 * TILE_BYTES, 0, {}};
  split_row(x, part == LATENT ? c.k.latent_units : c.k.rotary_units, bits, row);
  c.b.steps[m][part] = row.step * c.p.to_exponents / (part == MEAN ? 127 : 1);
  memcpy(c.b.sums[m][part], row.sums, sizeof(row.sums));
}

INLINE const bf16* query_row(const CodedProgress& c, int64_t m) {
  return (const bf16*)(c.p.b.query + m * c.p.s.widths.key_steps);
}

static void split_queries(const CodedProgress& c) {
  const int64_t rank = rank_of(c.k), width = c.p.s.widths.width;
  memset(c.b.query, 0, c.s.tiles * c.s.query_tile);
  for (int64_t m = 0; m < c.p.rows; m++) {
    convert(query_row(c, m), c.b.row, width);
    split_query(c, m, LATENT, c.b.row, c.k.unit_bits);
    if (width > rank) split_query(c, m, ROTARY, c.b.row + rank, c.k.unit_bits + c.k.latent_units);
    float sum = 0;
    for (int64_t j = 0; j < width; j++) sum += c.b.row[j] * c.k.first_row[j];
    c.b.firsts[m] = sum * c.p.to_exponents;
  }
}

// Factors of e^{i theta_j r}: conj(q_j) e^{i theta_j base} m_j, its real part and minus the other.
static void turn_queries(const CodedProgress& c, int64_t base) {
  const int64_t rank = rank_of(c.k), half = rope_of(c.k) / 2;
  if (!half) return;
  const Decoding& d = c.p.b.decoding;
  turn_to(c.k, base, d);
  const float *m1 = c.k.turned_mean, *m2 = m1 + half;
  for (int64_t m = 0; m < c.p.rows; m++) {
    convert(query_row(c, m) + rank, c.b.row, 2 * half);
    float *q1 = c.b.row, *q2 = q1 + half;
    for (int64_t j = 0; j < half; j++) {
      const float x = q1[j] * d.cos[j] + q2[j] * d.sin[j], y = q2[j] * d.cos[j] - q1[j] * d.sin[j];
      q1[j] = x * m1[j] + y * m2[j];
      q2[j] = y * m1[j] - x * m2[j];
    }
    split_query(c, m, MEAN, c.b.row, nullptr);
  }
}

#endif
