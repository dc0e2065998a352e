// Latent attention over the paged cache: a tile of queries against a range of rows.
//
// The rows of a tile's matrices are its queries times the heads: a cache row is read and packed
// once for all of them. Softmax is online (arXiv:1805.02867), in powers of two; a range that is
// only part of a context leaves its maximum, sum and output behind to be merged.
#pragma once

#include <float.h>

#include "direct.h"

struct Tile {
  int64_t request;
  int64_t first, queries;  // of the batch
  int64_t begin, end;      // cache rows
  int64_t partial;         // where the result goes; negative: to the output
};

// Scratch memory of one worker, and what one tile's result is made of.
struct TileBuffers {
  float *query, *keys, *values, *scores, *out, *sums, *maxima, *carry, *staged;
  char* gathered;
  const char** lines;
};

struct Shape {
  Widths widths;
  int64_t heads, out_stride;  // floats from one row of `out` to the next
};

template <bool DOT>
static Shape shape_of(const Attention& a) {
  Shape s;
  s.heads = a.heads;
  s.widths.width = a.cache.width;
  s.widths.rank = a.rank;
  s.widths.key_steps = steps_of<DOT>(a.cache.width);
  s.widths.value_panels = (a.rank + LANES - 1) / LANES;
  s.widths.value_panel = steps_of<DOT>(BLOCK_ROWS) * LANES;
  s.out_stride = s.widths.value_panels * LANES;
  return s;
}

// Lays the buffers out from `base` for tiles of up to `rows` rows; returns the bytes they take.
template <class T>
static size_t lay_out(const Shape& s, int64_t rows, char* base, TileBuffers* buffers) {
  size_t used = 0;
  auto take = [&](int64_t bytes) {
    char* start = base + used;
    used += round_up(bytes, 64);
    return start;
  };
  TileBuffers b;
  b.query = (float*)take(rows * s.widths.key_steps * 4);
  b.keys = (float*)take(BLOCK_ROWS * s.widths.key_steps * 4);
  b.values = (float*)take(s.widths.value_panels * s.widths.value_panel * 4);
  b.scores = (float*)take(rows * BLOCK_ROWS * 4);
  b.out = (float*)take(rows * s.out_stride * 4);
  b.sums = (float*)take(rows * LANES * 4);
  b.maxima = (float*)take(rows * 4);
  b.carry = (float*)take(rows * 4);
  b.staged = (float*)take(LANES * round_up(s.widths.width, LANES) * 4);
  b.gathered = take(BLOCK_ROWS * s.widths.width * sizeof(T));
  b.lines = (const char**)take(BLOCK_ROWS * (s.widths.width * sizeof(T) / 64 + 1) * sizeof(char*));
  if (buffers) *buffers = b;
  return used;
}

// Queries of the tile as rows of A, row = query * heads + head; odd widths get a zero behind.
template <bool DOT, class Q>
static void take_queries_as(const Attention& a, const Shape& s, const Tile& t, float* to) {
  for (int64_t q = 0; q < t.queries; q++)
    for (int64_t h = 0; h < s.heads; h++) {
      const Q* from = (const Q*)a.query + (t.first + q) * a.query_token + h * a.query_head;
      if constexpr (DOT) {
        to[s.widths.key_steps - 1] = 0;
        memcpy(to, from, s.widths.width * sizeof(Q));
      } else {
        convert(from, to, s.widths.width);
      }
      to += s.widths.key_steps;
    }
}

template <bool DOT>
static void take_queries(const Attention& a, const Shape& s, const Tile& t, float* to) {
  if (DOT) return take_queries_as<DOT, bf16>(a, s, t, to);
  if (a.query_dtype == FLOAT32) return take_queries_as<false, float>(a, s, t, to);
  if (a.query_dtype == FLOAT16) return take_queries_as<false, f16>(a, s, t, to);
  take_queries_as<false, bf16>(a, s, t, to);
}

template <class T>
INLINE const T* row_of(const Attention& a, const Tile& t, int64_t row) {
  const Cache& cache = a.cache;
  const int32_t* blocks = a.batch.block_table + t.request * a.batch.table_stride;
  return (const T*)cache.data + blocks[row / cache.block_size] * cache.block_stride +
         row % cache.block_size * cache.row_stride;
}

// Finds the panels of rows [begin, begin + count). A panel that crosses blocks is gathered, as is
// the last one, whose rows past the end are zeros.
template <class T>
static Panels panels_of(const Attention& a, const Tile& t, int64_t begin, int64_t count,
                        T* gathered) {
  const int64_t width = a.cache.width;
  Panels panels;
  panels.count = 0;
  for (int64_t first = 0; first < count; first += LANES) {
    const T* rows = row_of<T>(a, t, begin + first);
    int64_t stride = a.cache.row_stride;
    const int64_t in_block = a.cache.block_size - (begin + first) % a.cache.block_size;
    if (in_block < LANES || count - first < LANES) {
      T* const to = gathered + first * width;
      memset(to, 0, LANES * width * sizeof(T));
      for (int64_t i = 0; i < LANES && first + i < count; i++)
        memcpy(to + i * width, row_of<T>(a, t, begin + first + i), width * sizeof(T));
      rows = to;
      stride = width;
    }
    panels.rows[panels.count] = (const char*)rows;
    panels.pitch[panels.count] = stride * sizeof(T);
    panels.count++;
  }
  return panels;
}

template <class T, bool DOT>
static void pack_rows(const Shape& s, const Panels& panels, const TileBuffers& b) {
  for (int64_t i = 0; i < panels.count; i++)
    pack_panel<T, DOT>((const T*)panels.rows[i], panels.pitch[i] / sizeof(T), s.widths, b.staged,
                       b.keys + i * LANES * s.widths.key_steps,
                       b.values + i * steps_of<DOT>(LANES) * LANES);
}

// Lists the cache lines of rows [begin, begin + count), the next to be packed.
template <class T>
static Lines lines_of(const Attention& a, const Tile& t, int64_t begin, int64_t count,
                      const char** list) {
  const char** next = list;
  while (count > 0) {
    const int64_t in_block = a.cache.block_size - begin % a.cache.block_size;
    const int64_t rows = in_block < count ? in_block : count;
    const char* from = (const char*)row_of<T>(a, t, begin);
    const int64_t pitch = a.cache.row_stride * sizeof(T), bytes = a.cache.width * sizeof(T);
    if (pitch == bytes) {
      for (int64_t i = 0; i < rows * bytes; i += 64) *next++ = from + i;
    } else {
      for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < bytes; i += 64) *next++ = from + r * pitch + i;
    }
    begin += rows;
    count -= rows;
  }
  return {list, next - list};
}

// One row of scores to probabilities, in place; with DOT as pairs of bfloat16 at the row's start.
// Sums are of what is used, so that rounding the probabilities cancels to first order.
template <bool DOT>
INLINE void softmax_row(float* scores, int64_t columns, float* maximum, float* carry, float* sums) {
  vf largest = splat(-FLT_MAX);
  for (int64_t i = 0; i < columns; i += LANES) largest = larger(load(scores + i), largest);
  const float before = *maximum, found = horizontal_max(largest);
  // Never minus infinity: a row that has seen nothing yet must not subtract it from itself.
  const float now = found > before ? found : before;
  *maximum = now;
  const float factor = now == before ? 1.0f : exp2(splat(before - now))[0];
  *carry = factor;
  vf sum = load(sums) * factor;
#if defined(__AVX512BF16__)
  if constexpr (DOT) {
    const __m512bh ones = (__m512bh)_mm512_set1_epi32(0x3f803f80);
    bf16* to = (bf16*)scores;
    for (int64_t i = 0; i < columns; i += 2 * LANES) {
      const vf p0 = exp2(load(scores + i) - now), p1 = exp2(load(scores + i + LANES) - now);
      const __m512bh pair = _mm512_cvtne2ps_pbh((__m512)p1, (__m512)p0);
      _mm512_storeu_si512(to + i, (__m512i)pair);
      sum = (vf)_mm512_dpbf16_ps((__m512)sum, pair, ones);
    }
    store(sums, sum);
    return;
  }
#endif
  for (int64_t i = 0; i < columns; i += LANES) {
    const vf p = exp2(load(scores + i) - now);
    store(scores + i, p);
    sum += p;
  }
  store(sums, sum);
}

// Attends one tile; b.out, b.sums and b.maxima hold the result.
template <class T, bool DOT>
static void attend_tile(const Attention& a, const Shape& s, const Tile& t, const TileBuffers& b) {
  const int64_t rows = t.queries * s.heads;
  take_queries<DOT>(a, s, t, b.query);
  memset(b.out, 0, rows * s.out_stride * 4);
  memset(b.sums, 0, rows * LANES * 4);
  for (int64_t m = 0; m < rows; m++) b.maxima[m] = -FLT_MAX;
  // Rows the tile's first query may see; every later query sees one more.
  const int64_t length = a.batch.seq_lens[t.request];
  const int64_t visible = length - (a.batch.query_start[t.request + 1] - t.first) + 1;
  const float to_exponents = (float)(a.scale * 1.4426950408889634);
#if defined(__AVX512BF16__)
  // Whole vectors of values must lie inside a row.
  const bool direct = DOT && rows <= TILE_ROWS && s.out_stride <= a.cache.width;
#else
  constexpr bool direct = false;
#endif

  for (int64_t begin = t.begin; begin < t.end; begin += BLOCK_ROWS) {
    const int64_t count = t.end - begin < BLOCK_ROWS ? t.end - begin : BLOCK_ROWS;
    const Panels panels = panels_of<T>(a, t, begin, count, (T*)b.gathered);
    const int64_t after = begin + count, left = t.end - after;
    Lines lines = lines_of<T>(a, t, after, left < BLOCK_ROWS ? left : BLOCK_ROWS, b.lines);
    const int64_t columns = round_up(count, DOT ? 2 * LANES : LANES);
    const Into scores = {b.scores, BLOCK_ROWS, to_exponents, nullptr};
    const Into out = {b.out, s.out_stride, 1.0f, b.carry};
    const int64_t key_steps = s.widths.key_steps;
    if (direct) {
#if defined(__AVX512BF16__)
      DIRECT_PRODUCTS[rows - 1].scores(b.query, key_steps, panels, a.cache.width, scores, lines);
#endif
    } else {
      pack_rows<T, DOT>(s, panels, b);
      gemm<DOT, false>({b.query, key_steps, b.keys, key_steps * LANES, key_steps}, scores, rows,
                       panels.count, lines);
    }
    for (int64_t m = 0; m < rows; m++) {
      float* row = b.scores + m * BLOCK_ROWS;
      const int64_t seen = visible + m / s.heads - begin;
      const int64_t shown = seen < 0 ? 0 : seen < count ? seen : count;
      for (int64_t i = shown; i < columns; i++) row[i] = -__builtin_inff();
      softmax_row<DOT>(row, columns, b.maxima + m, b.carry + m, b.sums + m * LANES);
    }
    if (direct) {
#if defined(__AVX512BF16__)
      DIRECT_PRODUCTS[rows - 1].values(b.scores, BLOCK_ROWS, panels, s.widths.value_panels, out);
#endif
    } else {
      gemm<DOT, true>({b.scores, BLOCK_ROWS, b.values, s.widths.value_panel,
                       steps_of<DOT>(panels.count * LANES)},
                      out, rows, s.widths.value_panels, lines);
    }
  }
}

template <class O>
static void write_row(const float* from, float factor, O* to, int64_t n) {
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) store(to + i, load(from + i) * factor);
  if (i < n) store_some(to + i, load(from + i) * factor, n - i);
}
