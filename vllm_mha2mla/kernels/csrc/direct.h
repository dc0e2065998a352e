// Products with cache rows that are packed in registers, for as few rows of A as one register tile
// holds: each packed vector is used once then, and storing it would take as long as using it.
#pragma once

#include "pack.h"

// Cache rows per step of the online softmax; a multiple of 2 * LANES. Packed, they stay in L1.
constexpr int64_t BLOCK_ROWS = 96;

// Where the panels of a block lie: LANES rows each, so many bytes apart.
struct Panels {
  const char* rows[BLOCK_ROWS / LANES];
  int64_t pitch[BLOCK_ROWS / LANES];
  int64_t count;
};

#if defined(__AVX512BF16__)

// Cache lines asked for beside eight columns of two panels.
constexpr int64_t LINES_AT_ONCE = 8;

template <int ROWS, int PANELS, bool SOME>
INLINE void score_eight(vf sum[ROWS][PANELS], const float* a, int64_t a_stride, const Panels& in,
                        int64_t panel, int64_t column, int64_t n) {
  __m512i pairs[PANELS][4];
#pragma GCC unroll 2
  for (int p = 0; p < PANELS; p++)
    key_pairs<SOME>(in.rows[panel + p] + column * 2, in.pitch[panel + p], n, pairs[p]);
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++)
    if (!SOME || 2 * i < n)
#pragma GCC unroll 16
      for (int m = 0; m < ROWS; m++) {
        const vf row = splat(a[m * a_stride + column / 2 + i]);
#pragma GCC unroll 2
        for (int p = 0; p < PANELS; p++)
          sum[m][p] = multiply_add<true>(sum[m][p], row, (vf)pairs[p][i]);
      }
}

template <int ROWS, int PANELS>
static void score_panels(const float* a, int64_t a_stride, const Panels& in, int64_t panel,
                         int64_t width, const Into& out, Lines& lines) {
  vf sum[ROWS][PANELS] = {};
  int64_t column = 0;
  for (; column + 8 <= width; column += 8) {
    if (lines.left >= LINES_AT_ONCE) {
#pragma GCC unroll 8
      for (int i = 0; i < LINES_AT_ONCE; i++) __builtin_prefetch(lines.next[i], 0, 2);
      lines.next += LINES_AT_ONCE;
      lines.left -= LINES_AT_ONCE;
    }
    score_eight<ROWS, PANELS, false>(sum, a, a_stride, in, panel, column, 8);
  }
  if (column < width)
    score_eight<ROWS, PANELS, true>(sum, a, a_stride, in, panel, column, width - column);
#pragma GCC unroll 16
  for (int m = 0; m < ROWS; m++)
#pragma GCC unroll 2
    for (int p = 0; p < PANELS; p++)
      store(out.c + m * out.stride + (panel + p) * LANES, sum[m][p] * out.scale);
}

template <int ROWS>
static void direct_scores(const float* a, int64_t a_stride, const Panels& in, int64_t width,
                          const Into& out, Lines& lines) {
  int64_t panel = 0;
  for (; panel + 2 <= in.count; panel += 2)
    score_panels<ROWS, 2>(a, a_stride, in, panel, width, out, lines);
  if (panel < in.count) score_panels<ROWS, 1>(a, a_stride, in, panel, width, out, lines);
}

template <int ROWS, int WIDE>
static void weigh_columns(const float* a, int64_t a_stride, const Panels& in, int64_t column,
                          const Into& out) {
  float* const c = out.c + column;
  vf sum[ROWS][WIDE];
#pragma GCC unroll 16
  for (int m = 0; m < ROWS; m++)
#pragma GCC unroll 4
    for (int n = 0; n < WIDE; n++)
      sum[m][n] = load(c + m * out.stride + n * LANES) * out.carry[m];
  for (int64_t panel = 0; panel < in.count; panel++) {
    const int64_t pitch = in.pitch[panel];
    const char* from = in.rows[panel] + column * 2;
    const float* weights = a + panel * LANES / 2;
    for (int i = 0; i < LANES / 2; i++) {
      vf values[WIDE];
#pragma GCC unroll 4
      for (int n = 0; n < WIDE; n++)
        values[n] = (vf)value_pair<false>(from + n * LANES * 2, pitch, LANES);
#pragma GCC unroll 16
      for (int m = 0; m < ROWS; m++) {
        const vf weight = splat(weights[m * a_stride + i]);
#pragma GCC unroll 4
        for (int n = 0; n < WIDE; n++) sum[m][n] = multiply_add<true>(sum[m][n], weight, values[n]);
      }
      from += 2 * pitch;
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < ROWS; m++)
#pragma GCC unroll 4
    for (int n = 0; n < WIDE; n++) store(c + m * out.stride + n * LANES, sum[m][n]);
}

template <int ROWS>
static void direct_values(const float* a, int64_t a_stride, const Panels& in, int64_t columns,
                          const Into& out) {
  int64_t column = 0;
  for (int64_t left = columns; left > 0; left = columns - column) {
    // Two and two rather than three and one.
    if (left == 3 || left > 4) {
      weigh_columns<ROWS, 3>(a, a_stride, in, column * LANES, out);
      column += 3;
    } else if (left >= 2) {
      weigh_columns<ROWS, 2>(a, a_stride, in, column * LANES, out);
      column += 2;
    } else {
      weigh_columns<ROWS, 1>(a, a_stride, in, column * LANES, out);
      column += 1;
    }
  }
}

// The two products by the number of rows of A.
struct Direct {
  void (*scores)(const float*, int64_t, const Panels&, int64_t, const Into&, Lines&);
  void (*values)(const float*, int64_t, const Panels&, int64_t, const Into&);
};
#define DIRECT(n) {direct_scores<n>, direct_values<n>}
static const Direct DIRECT_PRODUCTS[TILE_ROWS] = {DIRECT(1), DIRECT(2), DIRECT(3),
                                                  DIRECT(4), DIRECT(5), DIRECT(6),
                                                  DIRECT(7), DIRECT(8), DIRECT(9)};
#undef DIRECT

#endif
