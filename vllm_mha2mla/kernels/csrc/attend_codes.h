// Latent attention over coded rows in integers: levels are multiplied, and scales after that.
//
//   score[n] = s_z[n] (q_z . levels_z[n]) + s_u[n] (q_u . levels_u[n]) + q_u . R_n m
//   out = sum_n (p[n] s_z[n]) levels_z[n]
//
// and the first row's f beside row 0. Queries and weights p s are split into two limbs of 8 bits:
// they are off by 2^-16 of the largest.
#pragma once

#include "coded_queries.h"
#include "coded_scores.h"
#include "coded_values.h"

#if defined(__AVX512VBMI__) && defined(__AVX512VNNI__)

// Finds the groups of rows [begin, begin + count); those behind the last are the first again.
static void coded_groups(const CodedProgress& c, int64_t begin, int64_t count,
                         const uint8_t* groups[STEP_GROUPS]) {
  const Cache& cache = c.p.a.cache;
  const Batch& batch = c.p.a.batch;
  const int32_t* blocks = batch.block_table + c.p.t.request * batch.table_stride;
  const uint32_t block_size = (uint32_t)cache.block_size;
  for (int64_t g = 0; g < STEP_GROUPS; g++) {
    const uint32_t row = (uint32_t)(begin + (g * GROUP_ROWS < count ? g * GROUP_ROWS : 0));
    groups[g] = (const uint8_t*)coded_group(cache, blocks[row / block_size], row % block_size);
  }
}

// Attends one tile, as `attend_packed` does.
static void attend_codes(const Progress& p, char* scratch) {
  const Coded& k = *p.a.cache.coded;
  CodedBuffers b;
  lay_out_coded(k, p.rows, scratch, &b);
  const CodedShape s = coded_shape(k, p.rows);
  const CodedProgress c = {p, k, s, b};
  const Tile& t = p.t;
  const Tiles tiles(s.height);
  split_queries(c);
  const uint8_t *groups[2][STEP_GROUPS];
  auto count_of = [&](int64_t begin) {
    const int64_t left = t.end - begin;
    return left < CODED_STEP ? left : CODED_STEP;
  };
  coded_groups(c, t.begin, count_of(t.begin), groups[0]);
  for (int64_t begin = t.begin, step = 0; begin < t.end; begin += CODED_STEP, step++) {
    const int64_t count = count_of(begin), after = begin + count;
    if (begin == t.begin || begin % TABLE_ROWS == 0)
      turn_queries(c, begin / TABLE_ROWS * TABLE_ROWS);
    const uint8_t** const own = groups[step % 2];
    const uint8_t** const next = groups[(step + 1) % 2];
    if (after < t.end) coded_groups(c, after, count_of(after), next);
    const uint8_t* const* const ahead = after < t.end ? next : own;
    score_codes(c, begin, count, own, ahead);
    for (int64_t m = 0; begin == 0 && m < p.rows; m++) p.b.scores[m * CODED_STEP] += b.firsts[m];
    const bool grown = softmax<false, CODED_STEP>(p, begin, count);
    for (int64_t m = 0; m < p.rows; m++) {
      float* const out = p.b.out + m * p.s.out_stride;
      const float factor = p.b.carry[m], first = p.b.scores[m * CODED_STEP];
      for (int64_t j = 0; grown && j < p.s.out_stride; j += LANES)
        store(out + j, load(out + j) * factor);
      for (int64_t j = 0; begin == 0 && j < rank_of(k); j++) out[j] += first * k.first_row[j];
      // From here on, the step of the row's weights.
      p.b.carry[m] = split_probabilities(c, m, count);
    }
    weigh_codes(c, count, own);
  }
}

#endif
