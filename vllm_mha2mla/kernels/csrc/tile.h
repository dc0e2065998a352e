// Attention of one tile of queries, by the way that suits cache, queries and instruction set.
#pragma once

#include "attend_codes.h"

// Attends one tile; b.out, b.sums and b.maxima hold the result.
// `codes`: scratch for coded rows.
template <class T, bool DOT>
static void attend_tile(const Attention& a, const Shape& s, const Tile& t, Ahead& ahead,
                        const TileBuffers& b, char* codes) {
  const int64_t rows = t.queries * s.heads, length = a.batch.seq_lens[t.request];
  take_queries<DOT>(a, s, t, b.query);
  memset(b.out, 0, rows * s.out_stride * 4);
  memset(b.sums, 0, rows * LANES * 4);
  for (int64_t m = 0; m < rows; m++) b.maxima[m] = -FLT_MAX;
  const Progress p = {a, s, t, b, rows,
                      length - (a.batch.query_start[t.request + 1] - t.first) + 1,
                      (float)(a.scale * 1.4426950408889634)};
#if defined(__AVX512BF16__)
  if constexpr (DOT) {
    if (a.cache.coded) return attend_codes(p, codes);
    if (rows <= direct_limit(s.widths.width)) {
      attend_directly(p, ahead);
    } else {
      attend_packed<T, true>(p);
      ahead.lead -= bytes_of(a.cache, t.end - t.begin);
    }
    for (int64_t i = 0; i < rows * s.out_stride; i += LANES)
      store(b.out + i, in_order(load(b.out + i)));
    return;
  }
#endif
  attend_packed<T, false>(p);
}

// Bytes of one worker's scratch for tiles of up to `rows` rows of A; coded rows' begins at `codes`.
template <class T, bool DOT>
static size_t worker_bytes(const Attention& a, const Shape& s, int64_t rows) {
  size_t bytes = lay_out<T>(s, rows, a.cache.coded, nullptr, nullptr);
#if defined(__AVX512BF16__)
  if (DOT && a.cache.coded) bytes += lay_out_coded(*a.cache.coded, rows, nullptr, nullptr);
#endif
  return bytes;
}

template <class O>
static void write_row(const float* from, float factor, O* to, int64_t n) {
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) store(to + i, load(from + i) * factor);
  if (i < n) store_some(to + i, load(from + i) * factor, n - i);
}
