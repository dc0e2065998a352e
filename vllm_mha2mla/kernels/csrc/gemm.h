// The matrix product that everything is made of: C = A B, A read by broadcast, B packed in panels.
//
// A dword is one float, or with DOT a pair of bfloat16 numbers that the hardware multiplies and
// adds at once. A: [rows, steps] dwords. B: panels of LANES columns, [panels][steps][LANES] dwords.
#pragma once

#include "vec.h"

#if defined(__AVX512BF16__)
constexpr bool HAS_DOT = true;
#else
constexpr bool HAS_DOT = false;
#endif

// Size of a register tile: its sums leave registers for one step of B and one broadcast of A.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int TILE_ROWS = 9, TILE_PANELS = 3;
#else
constexpr int TILE_ROWS = 4, TILE_PANELS = 3;
#endif

template <bool DOT>
INLINE vf multiply_add(vf sum, vf a, vf b) {
#if defined(__AVX512BF16__)
  if (DOT)
    return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)(__m512i)b, (__m512bh)(__m512i)a);
#endif
  return sum + a * b;
}

// The result: C = scale * A B, or with CARRY C = carry[row] * C + A B.
struct Into {
  float* c;
  int64_t stride;
  float scale;
  const float* carry;
};

struct Operands {
  const float* a;
  int64_t a_stride;
  const float* b;
  int64_t b_panel;
  int64_t steps;
};

// Cache lines to prefetch while multiplying, two in each step, so that memory works all the time
// instead of in bursts between the products. Lines left over are not prefetched.
struct Lines {
  const char* const* next;
  int64_t left;
};

template <bool DOT, bool CARRY, int ROWS, int PANELS>
static void tile(const Operands& in, const Into& out, const char* const* lines, int64_t lines_step) {
  vf sum[ROWS][PANELS];
  float* const c = out.c;
#pragma GCC unroll 16
  for (int m = 0; m < ROWS; m++)
#pragma GCC unroll 16
    for (int n = 0; n < PANELS; n++)
      sum[m][n] = CARRY ? load(c + m * out.stride + n * LANES) * out.carry[m] : vf{};
  const float *a = in.a, *b = in.b;
  const int64_t a_stride = in.a_stride, b_panel = in.b_panel;
  for (int64_t k = 0; k < in.steps; k++) {
    __builtin_prefetch(lines[0], 0, 2);
    __builtin_prefetch(lines[1], 0, 2);
    lines += lines_step;
    vf column[PANELS];
#pragma GCC unroll 16
    for (int n = 0; n < PANELS; n++) column[n] = load(b + n * b_panel + k * LANES);
#pragma GCC unroll 16
    for (int m = 0; m < ROWS; m++) {
      const vf row = splat(a[m * a_stride + k]);
#pragma GCC unroll 16
      for (int n = 0; n < PANELS; n++)
        sum[m][n] = multiply_add<DOT>(sum[m][n], row, column[n]);
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < ROWS; m++)
#pragma GCC unroll 16
    for (int n = 0; n < PANELS; n++)
      store(c + m * out.stride + n * LANES, CARRY ? sum[m][n] : sum[m][n] * out.scale);
}

template <bool DOT, bool CARRY, int PANELS>
static void tiles(Operands in, Into out, int64_t rows, Lines& lines) {
  static const char nothing = 0;
  static const char* const none[2] = {&nothing, &nothing};
  // Tiles of nearly equal height: one of a single row has too few sums to hide their latency.
  int64_t count = (rows + TILE_ROWS - 1) / TILE_ROWS;
  for (; count > 0; count--) {
    const int64_t height = (rows + count - 1) / count;
    const bool some = lines.left >= 2 * in.steps;
    const char* const* ahead = some ? lines.next : none;
    const int64_t step = some ? 2 : 0;
    if (some) {
      lines.next += 2 * in.steps;
      lines.left -= 2 * in.steps;
    }
    switch (height) {
#define CASE(n) \
  case n: tile<DOT, CARRY, n, PANELS>(in, out, ahead, step); break;
      CASE(1) CASE(2) CASE(3) CASE(4)
#if defined(__AVX512F__) || defined(__aarch64__)
      CASE(5) CASE(6) CASE(7) CASE(8) CASE(9)
#endif
#undef CASE
    }
    rows -= height;
    in.a += height * in.a_stride;
    out.c += height * out.stride;
    if (CARRY) out.carry += height;
  }
}

template <bool DOT, bool CARRY>
static void gemm(Operands in, Into out, int64_t rows, int64_t panels, Lines& lines) {
  int64_t count = (panels + TILE_PANELS - 1) / TILE_PANELS;
  for (; count > 0; count--) {
    const int64_t wide = (panels + count - 1) / count;
    if (wide == 3) tiles<DOT, CARRY, 3>(in, out, rows, lines);
    if (wide == 2) tiles<DOT, CARRY, 2>(in, out, rows, lines);
    if (wide == 1) tiles<DOT, CARRY, 1>(in, out, rows, lines);
    panels -= wide;
    in.b += wide * in.b_panel;
    out.c += wide * LANES;
  }
}
