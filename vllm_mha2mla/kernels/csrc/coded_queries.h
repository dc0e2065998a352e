// Queries as limbs, one part of a score after the other.
//
// With n = base + r, the mean's part of a score is the real part of
//
//   sum_f (c_f e^{i f base}) e^{i f r},   c_f = sum_{j: theta_j = f} conj(q_j) m_j
//
// so one table of e^{i f r} serves all rows r and requests, and factors change with the base.
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
  split_row(x, units_of(c.k, part), bits, row);
  c.b.steps[m][part] = row.step * c.p.to_exponents / (part == MEAN ? 127 : 1);
  memcpy(c.b.sums[m][part], row.sums, sizeof(row.sums));
}

INLINE const bf16* query_row(const CodedProgress& c, int64_t m) {
  return (const bf16*)(c.p.b.query + m * c.p.s.widths.key_steps);
}

// c_f of row m of A, its real part and then minus the other, from the row's rotary columns.
INLINE void collect_mean(const CodedProgress& c, int64_t m, const float* q) {
  const int64_t half = rope_of(c.k) / 2;
  const float *q2 = q + half, *m1 = c.k.turned_mean, *m2 = m1 + half;
  float *const x = c.b.means + m * 2 * c.k.frequencies, *const y = x + c.k.frequencies;
  memset(x, 0, 2 * c.k.frequencies * 4);
  for (int64_t j = 0; j < half; j++) {
    const int32_t f = c.k.frequency_of[j];
    x[f] += q[j] * m1[j] + q2[j] * m2[j];
    y[f] += q2[j] * m1[j] - q[j] * m2[j];
  }
}

static void split_queries(const CodedProgress& c) {
  const int64_t rank = rank_of(c.k), width = c.p.s.widths.width;
  memset(c.b.query, 0, c.s.tiles * c.s.query_tile);
  for (int64_t m = 0; m < c.p.rows; m++) {
    convert(query_row(c, m), c.b.row, width);
    split_query(c, m, LATENT, c.b.row, c.k.unit_bits);
    if (width > rank) {
      split_query(c, m, ROTARY, c.b.row + rank, c.k.unit_bits + c.k.latent_units);
      collect_mean(c, m, c.b.row + rank);
    }
    float sum = 0;
    for (int64_t j = 0; j < width; j++) sum += c.b.row[j] * c.k.first_row[j];
    c.b.firsts[m] = sum * c.p.to_exponents;
  }
}

// Factors of e^{i f r}: c_f e^{i f base}, its real part and minus the other.
static void turn_queries(const CodedProgress& c, int64_t base) {
  const int64_t count = c.k.frequencies;
  if (!count) return;
  const Decoding& d = c.p.b.decoding;
  angles(base, c.k.frequency, count, d.cos, d.sin);
  for (int64_t m = 0; m < c.p.rows; m++) {
    const float *x = c.b.means + m * 2 * count, *y = x + count;
    for (int64_t j = 0; j < count; j += LANES) {
      const vf cos = load(d.cos + j), sin = load(d.sin + j);
      store(c.b.row + j, load(x + j) * cos + load(y + j) * sin);
      store(c.b.row + count + j, load(y + j) * cos - load(x + j) * sin);
    }
    split_query(c, m, MEAN, c.b.row, nullptr);
  }
}

#endif
