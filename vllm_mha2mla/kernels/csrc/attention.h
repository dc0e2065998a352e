// Latent attention over the paged cache: a tile of queries against a range of rows.
//
// The rows of a tile's matrices are its queries times the heads: a cache row is read and packed
// once for all of them. Softmax is online (arXiv:1805.02867), in powers of two; a range that is
// only part of a context leaves its maximum, sum and output behind to be merged.
#pragma once

#include <float.h>

#include "decode.h"
#include "direct.h"

// Coded rows per step of the online softmax where they are multiplied as integers.
constexpr int64_t CODED_STEP = 256;

// Scratch memory of one worker, and what one tile's result is made of.
struct TileBuffers {
  float *query, *spread, *keys, *values, *scores, *out, *sums, *maxima, *carry, *staged;
  char* gathered;
  const char** lines;
  Decoding decoding;  // of a coded cache
};

struct Shape {
  Widths widths;
  int64_t heads, out_stride;  // floats from one row of `out` to the next
  int64_t step_rows;          // contexts are split at multiples of it
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
  s.step_rows = DOT && a.cache.coded ? CODED_STEP : BLOCK_ROWS;
  return s;
}

// Lays the buffers out from `base` for tiles of up to `rows` rows; returns the bytes they take.
template <class T>
static size_t lay_out(const Shape& s, int64_t rows, const Coded* coded, char* base,
                      TileBuffers* buffers) {
  size_t used = 0;
  auto take = [&](int64_t bytes) {
    char* start = base + used;
    used += round_up(bytes, 64);
    return start;
  };
  const int64_t limit = direct_limit(s.widths.width), spread_rows = rows < limit ? rows : limit;
  TileBuffers b;
  b.query = (float*)take(rows * s.widths.key_steps * 4);
  b.spread = (float*)take(HAS_DOT ? spread_rows * query_dwords(s.widths.width) * 4 : 0);
  b.keys = (float*)take(BLOCK_ROWS * s.widths.key_steps * 4);
  b.values = (float*)take(s.widths.value_panels * s.widths.value_panel * 4);
  b.scores = (float*)take(rows * s.step_rows * 4);
  b.out = (float*)take(rows * s.out_stride * 4);
  b.sums = (float*)take(rows * LANES * 4);
  b.maxima = (float*)take(rows * 4);
  b.carry = (float*)take(rows * 4);
  b.staged = (float*)take(LANES * round_up(s.widths.width, LANES) * 4);
  b.gathered = take(BLOCK_ROWS * pairs_of(s.widths.width) * 2 * sizeof(T));
  b.lines = (const char**)take(BLOCK_ROWS * (s.widths.width * sizeof(T) / 64 + 1) * sizeof(char*));
  if (coded) {
    const int64_t width = s.widths.width + LANES;
    b.decoding.levels = (int8_t*)take(width);
    b.decoding.row = (float*)take(width * 4);
    b.decoding.mean = (float*)take(width * 4);
    b.decoding.cos = (float*)take(width * 4);
    b.decoding.sin = (float*)take(width * 4);
  }
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

static_assert(TURNS >= BLOCK_ROWS, "the mean's turns last for a block of rows");

// Decodes rows [base + first, base + first + count) of a coded cache to `to`  # [count, width]
// The angles in `d` are those of `base`.
template <class T>
static void decode_rows(const Attention& a, const Tile& t, int64_t base, int64_t first,
                        int64_t count, const Decoding& d, T* to) {
  const Cache& c = a.cache;
  const int32_t* blocks = a.batch.block_table + t.request * a.batch.table_stride;
  for (int64_t r = first; r < first + count; r++, to += c.width) {
    const int64_t n = base + r, offset = n % c.block_size;
    const char* group = coded_group(c, blocks[n / c.block_size], offset);
    decode_row(c, group, offset % GROUP_ROWS, r, n == 0, d);
    convert(d.row, to, c.width);
  }
}

// The panels of a step: the address of each one's LANES rows, and the numbers from row to row.
template <class T>
struct Panels {
  const T* rows[BLOCK_ROWS / LANES];
  int64_t stride[BLOCK_ROWS / LANES];
  int64_t count;
};

// Finds the panels of rows [begin, begin + count). A panel is copied to `gathered` if it crosses
// blocks, is stored in pairs or coded, or is the last one and has to be filled up with zeros.
template <class T>
static Panels<T> panels_of(const Attention& a, const Tile& t, int64_t begin, int64_t count,
                           const TileBuffers& b) {
  const Cache& cache = a.cache;
  const int64_t width = cache.width;
  T* const gathered = (T*)b.gathered;
  const bool paired = is_paired(cache);
  Panels<T> panels;
  panels.count = 0;
  if (cache.coded) {
    turn_to(*cache.coded, begin, b.decoding);
    decode_rows(a, t, begin, 0, count, b.decoding, gathered);
    const int64_t whole = round_up(count, LANES);
    memset(gathered + count * width, 0, (whole - count) * width * sizeof(T));
    for (; panels.count * LANES < whole; panels.count++) {
      panels.rows[panels.count] = gathered + panels.count * LANES * width;
      panels.stride[panels.count] = width;
    }
    return panels;
  }
  for (int64_t first = 0; first < count; first += LANES) {
    const T* rows = row_of<T>(a, t, begin + first);
    int64_t stride = cache.row_stride;
    const int64_t in_block = cache.block_size - (begin + first) % cache.block_size;
    const int64_t left = count - first;
    if (paired || in_block < LANES || left < LANES) {
      T* const to = gathered + first * width;
      memset(to, 0, LANES * width * sizeof(T));
      for (int64_t i = 0; i < LANES && i < left; i += paired ? GROUP_ROWS : 1) {
        const T* from = row_of<T>(a, t, begin + first + i);
#if defined(__AVX512BF16__)
        if (paired) {
          const int64_t some = left - i < GROUP_ROWS ? left - i : GROUP_ROWS;
          unpair_rows((const char*)from, some, width, (bf16*)(to + i * width));
          continue;
        }
#endif
        memcpy(to + i * width, from, width * sizeof(T));
      }
      rows = to;
      stride = width;
    }
    panels.rows[panels.count] = rows;
    panels.stride[panels.count] = stride;
    panels.count++;
  }
  return panels;
}

template <class T>
static void pack_rows(const Shape& s, const Panels<T>& panels, const TileBuffers& b) {
  for (int64_t i = 0; i < panels.count; i++)
    pack_floats(panels.rows[i], panels.stride[i], s.widths, b.staged,
                b.keys + i * LANES * s.widths.key_steps, b.values + i * LANES * LANES);
}

#if defined(__AVX512BF16__)

// Finds the groups of rows [begin, begin + count), filled up with zeros to a multiple of MULTIPLE
// rows; `begin` is a multiple of GROUP_ROWS. Rows that are not stored in pairs are paired in
// `gathered`.
template <int64_t MULTIPLE>
INLINE Groups groups_of(const Attention& a, const Tile& t, int64_t begin, int64_t count,
                        char* gathered) {
  const Cache& cache = a.cache;
  const int32_t* blocks = a.batch.block_table + t.request * a.batch.table_stride;
  const bool paired = is_paired(cache);
  // 32 bits, because a 64-bit division would take as long as a row.
  const uint32_t row = (uint32_t)begin, block_size = (uint32_t)cache.block_size;
  int64_t block = row / block_size, offset = row % block_size;
  Groups groups;
  groups.count = 0;
  for (int64_t first = 0; first < round_up(count, MULTIPLE); first += GROUP_ROWS) {
    const int64_t left = count - first;
    const int64_t rows = left < 0 ? 0 : left < GROUP_ROWS ? left : GROUP_ROWS;
    char* const own = gathered + first * pairs_of(cache.width) * 4;
    groups.at[groups.count++] = own;
    if (paired && rows) {
      const char* group = group_at(cache, blocks[block], offset);
      if (rows < GROUP_ROWS) first_rows(group, rows, cache.width, own);
      else groups.at[groups.count - 1] = group;
      offset += GROUP_ROWS;
      if (offset == cache.block_size) block++, offset = 0;
    } else {
      const bf16* each[GROUP_ROWS] = {};
      for (int64_t i = 0; i < rows; i++) each[i] = row_of<bf16>(a, t, begin + first + i);
      pair_rows(each, cache.width, own);
    }
  }
  return groups;
}

static void pack_panels(const Shape& s, const Groups& groups, const TileBuffers& b) {
  for (int64_t i = 0; i < groups.count; i += 2) {
    const char* const both[2] = {groups.at[i], groups.at[i + 1]};
    pack_groups(both, s.widths, b.keys + i * GROUP_ROWS * s.widths.key_steps,
                b.values + i * GROUP_ROWS / 2 * LANES);
  }
}

#endif

// Lists the cache lines of rows [begin, begin + count), the next to be packed.
template <class T>
static Lines lines_of(const Attention& a, const Tile& t, int64_t begin, int64_t count,
                      const char** list) {
  const char** next = list;
  const int32_t* blocks = a.batch.block_table + t.request * a.batch.table_stride;
  const int64_t pitch = bytes_of(a.cache, 1);
  const int64_t bytes = a.cache.coded ? pitch : a.cache.width * (int64_t)sizeof(T);
  while (count > 0) {
    const int64_t offset = begin % a.cache.block_size, in_block = a.cache.block_size - offset;
    const int64_t rows = in_block < count ? in_block : count;
    const char* from = (const char*)a.cache.data + offset * pitch +
                       blocks[begin / a.cache.block_size] * a.cache.block_stride *
                           bytes_per_element(a.cache);
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

// Turns one row of scores into probabilities, in place; with DOT as pairs of bfloat16 at the row's
// start. The sums are those of the rounded probabilities, so that rounding cancels to first order.
// Returns true if the maximum has grown.
template <bool DOT>
INLINE bool softmax_row(float* scores, int64_t columns, float* maximum, float* carry, float* sums) {
  vf largest = splat(-FLT_MAX);
  for (int64_t i = 0; i < columns; i += LANES) largest = larger(load(scores + i), largest);
  // Never minus infinity: a row that has seen nothing yet must not subtract it from itself.
  const float before = *maximum;
  float now = before, factor = 1.0f;
  const bool grown = any_above(largest, before);
  if (grown) {
    now = *maximum = horizontal_max(largest);
    factor = exp2(splat(before - now))[0];
  }
  *carry = factor;
  vf sum = load(sums) * factor;
#if defined(__AVX512BF16__)
  if constexpr (DOT) {
    const __m512bh ones = (__m512bh)_mm512_set1_epi32(0x3f803f80);
    for (int64_t i = 0; i < columns; i += 2 * LANES) {
      const vf p0 = exp2_to_bf16(load(scores + i) - now);
      const vf p1 = exp2_to_bf16(load(scores + i + LANES) - now);
      const __m512i pairs = pairs_of_weights(p0, p1);
      _mm512_storeu_si512(scores + i / 2, pairs);
      sum = (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)pairs, ones);
    }
    store(sums, sum);
    return grown;
  }
#endif
  for (int64_t i = 0; i < columns; i += LANES) {
    const vf p = exp2(load(scores + i) - now);
    store(scores + i, p);
    sum += p;
  }
  store(sums, sum);
  return grown;
}

// The state of one tile while it goes through the cache rows.
struct Progress {
  const Attention& a;
  const Shape& s;
  const Tile& t;
  const TileBuffers& b;
  int64_t rows;     // rows of A: queries times heads
  int64_t visible;  // cache rows that the first query may see; every later one sees one more
  float to_exponents;
};

// Turns the scores of cache rows [begin, begin + count) into probabilities. Returns true if the
// maximum of any row has grown.
template <bool DOT, int64_t STRIDE = BLOCK_ROWS>
static bool softmax(const Progress& p, int64_t begin, int64_t count) {
  const int64_t columns = round_up(count, DOT ? 2 * LANES : LANES);
  bool grown = false;
  int64_t m = 0;
  for (int64_t query = 0; query < p.t.queries; query++) {
    const int64_t seen = p.visible + query - begin;
    const int64_t shown = seen < 0 ? 0 : seen < count ? seen : count;
    for (const int64_t last = m + p.s.heads; m < last; m++) {
      float* row = p.b.scores + m * STRIDE;
      for (int64_t i = shown; i < columns; i++) row[i] = -__builtin_inff();
      float *const maximum = p.b.maxima + m, *const sums = p.b.sums + m * LANES;
      // With a constant number of columns, the compiler unrolls all loops.
      grown |= DOT && columns == DIRECT_ROWS
                   ? softmax_row<DOT>(row, DIRECT_ROWS, maximum, p.b.carry + m, sums)
                   : softmax_row<DOT>(row, columns, maximum, p.b.carry + m, sums);
    }
  }
  return grown;
}

// Packs each block of rows, for more rows of A than `attend_directly` takes.
template <class T, bool DOT>
static void attend_packed(const Progress& p) {
  const Tile& t = p.t;
  const Widths& w = p.s.widths;
  for (int64_t begin = t.begin; begin < t.end; begin += BLOCK_ROWS) {
    const int64_t count = t.end - begin < BLOCK_ROWS ? t.end - begin : BLOCK_ROWS;
    const int64_t after = begin + count, left = t.end - after;
    Lines lines = lines_of<T>(p.a, t, after, left < BLOCK_ROWS ? left : BLOCK_ROWS, p.b.lines);
    const int64_t panels = (count + LANES - 1) / LANES;
#if defined(__AVX512BF16__)
    if constexpr (DOT)
      pack_panels(p.s, groups_of<LANES>(p.a, t, begin, count, p.b.gathered), p.b);
#endif
    if constexpr (!DOT) pack_rows(p.s, panels_of<T>(p.a, t, begin, count, p.b), p.b);
    gemm<DOT, false>({p.b.query, w.key_steps, p.b.keys, w.key_steps * LANES, w.key_steps},
                     {p.b.scores, BLOCK_ROWS, p.to_exponents, nullptr}, p.rows, panels, lines);
    softmax<DOT>(p, begin, count);
    gemm<DOT, true>({p.b.scores, BLOCK_ROWS, p.b.values, w.value_panel,
                     steps_of<DOT>(panels * LANES)},
                    {p.b.out, p.s.out_stride, 1.0f, p.b.carry}, p.rows, w.value_panels, lines);
  }
}

#if defined(__AVX512BF16__)

// Multiplies with groups as they are stored in the cache, at most TILE_ROWS rows of A at a time.
static void attend_directly(const Progress& p, Ahead& ahead) {
  const Tile& t = p.t;
  const TileBuffers& b = p.b;
  const int64_t steps = p.s.widths.key_steps, units = p.s.widths.value_panels;
  const int64_t stride = p.s.out_stride, spread = query_dwords(p.s.widths.width);
  const int64_t parts = (p.rows + TILE_ROWS - 1) / TILE_ROWS;
  int64_t first[DIRECT_PARTS + 1];
  for (int64_t i = 0; i <= parts; i++) first[i] = i * p.rows / parts;
  for (int64_t i = 0; i < parts; i++)
    spread_query(b.query + first[i] * steps, first[i + 1] - first[i], steps,
                 b.spread + first[i] * spread);
  // The first part brings the rows into L1; the others have nothing to prefetch.
  Ahead none = {};
  stop(none);
  // Tiles computed by `attend_packed` have not moved it on.
  if (ahead.tile < &t) ahead = ahead_of(p.a.cache, p.a.batch, &t, ahead.last);
  catch_up(ahead);
  for (int64_t begin = t.begin; begin < t.end; begin += DIRECT_ROWS) {
    const int64_t count = t.end - begin < DIRECT_ROWS ? t.end - begin : DIRECT_ROWS;
    const Groups groups = groups_of<GROUP_ROWS>(p.a, t, begin, count, b.gathered);
    ahead.lead -= bytes_of(p.a.cache, count);
    for (int64_t i = 0; i < parts; i++)
      DIRECT_PRODUCTS[first[i + 1] - first[i] - 1].scores(
          b.spread + first[i] * spread, groups, steps, b.scores + first[i] * BLOCK_ROWS,
          p.to_exponents, i ? none : ahead);
    catch_up(ahead);
    const bool grown = softmax<true>(p, begin, count);
    for (int64_t m = 0; grown && m < p.rows; m++) {
      for (float* out = b.out + m * stride; out < b.out + (m + 1) * stride; out += LANES)
        store(out, load(out) * b.carry[m]);
    }
    for (int64_t i = 0; i < parts; i++)
      DIRECT_PRODUCTS[first[i + 1] - first[i] - 1].values(
          b.scores + first[i] * BLOCK_ROWS, groups, steps, b.out + first[i] * stride, units,
          i ? none : ahead);
  }
}

#endif
