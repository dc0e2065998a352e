// Attention over coded rows with AMX: integers all the way from codes to scores and values.
//
// A coded row is integers times one scale for its latent and one for its rotary columns, so
//
//   score(n) = s(n) (q . level(n)) + s'(n) (q' . level'(n)) + q' . R_n m,    out = sum_n p(n) s(n) level(n)
//
// are sums of 8-bit products. Queries and weights p s have 15 bits each, as two 8-bit numbers
// (x = 256 high + low): for them and for nothing else is anything rounded, by 2^-16 of the largest.
// The mean's part is a bfloat16 product with R_r m for the rows r of a step, once the queries are
// turned back to its first row. The first row of a text is added in float.
#pragma once

#include "amx_buffers.h"
#include "amx_decode.h"
#include "attention.h"

#if defined(__AMX_INT8__) && defined(__AVX512VBMI__)

// Units whose columns one step of a sum takes.
constexpr int64_t UNITS_OF_STEP = TILE_WIDTH / UNIT;
// The largest number that two signed bytes hold.
constexpr float FIFTEEN_BITS = 127 * 256 + 127;

// For members, which `static` would make functions without an object.
#define ALWAYS_INLINE inline __attribute__((always_inline))

// Tiles 0 to 3 are results, 4 and 5 first operands, 6 and 7 second operands.
INLINE void configure_tiles(int64_t rows) {
  struct alignas(64) {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};
  } c;
  for (int i = 0; i < 8; i++) {
    c.bytes[i] = TILE_WIDTH;
    c.rows[i] = (uint8_t)(i < 6 ? rows : TILE_HEIGHT);
  }
  _tile_loadconfig(&c);
}

// Splits n numbers times `factor` into high and low bytes, at the same place of two tiles.
INLINE void split_bytes(const float* from, float factor, int64_t n, char* high) {
  for (int64_t j = 0; j < n; j += LANES) {
    const __m512i x = _mm512_cvtps_epi32((__m512)(load(from + j) * factor));
    const __m512i upper = _mm512_srai_epi32(_mm512_add_epi32(x, _mm512_set1_epi32(128)), 8);
    const __m512i lower = _mm512_sub_epi32(x, _mm512_slli_epi32(upper, 8));
    _mm_storeu_si128((__m128i*)(high + j), _mm512_cvtepi32_epi8(upper));
    _mm_storeu_si128((__m128i*)(high + TILE_BYTES + j), _mm512_cvtepi32_epi8(lower));
  }
}

INLINE float largest_of(const float* x, int64_t n) {
  vf largest = {};
  for (int64_t j = 0; j < n; j += LANES)
    largest = larger((vf)_mm512_abs_ps((__m512)load(x + j)), largest);
  return horizontal_max(largest);
}

// One part of a row of A, zeros behind it, as bytes of `steps` pairs of tiles; returns its unit.
static float take_part(const float* from, int64_t n, char* to) {
  alignas(64) float part[TILE_WIDTH];
  const float largest = largest_of(from, n);
  const float factor = largest > 0 ? FIFTEEN_BITS / largest : 0.0f;
  for (int64_t j = 0; j < n; j += TILE_WIDTH, to += 2 * TILE_BYTES) {
    const int64_t some = n - j < TILE_WIDTH ? n - j : TILE_WIDTH;
    for (int64_t i = 0; i < TILE_WIDTH; i += LANES)
      store(part + i, i < some ? load(from + j + i) : vf{});
    if (some % LANES) memset(part + some, 0, (LANES - some % LANES) * 4);
    split_bytes(part, factor, TILE_WIDTH, to);
  }
  return largest / FIFTEEN_BITS;
}

// A tile of queries against coded rows, and the state of it.
struct AmxTile {
  const Progress& p;
  const Coded& k;
  const AmxBuffers& b;
  int64_t rank, rope, latent_steps, rotary_steps, high;

  AmxTile(const Progress& p, const AmxBuffers& b)
      : p(p), k(*p.a.cache.coded), b(b), rank(rank_of(k)), rope(rope_of(k)),
        latent_steps(tiles_of(rank, TILE_WIDTH)), rotary_steps(tiles_of(rope, TILE_WIDTH)),
        high(tiles_of(p.rows, TILE_HEIGHT)) {}

  int64_t steps() const { return latent_steps + rotary_steps; }
  float* unit(int part) const { return b.unit + part * high * TILE_HEIGHT; }

  // Queries as bytes, and their rotary columns turned back to row `begin`  # query: [rows, width]
  void take_queries(const bf16* query, int64_t stride, int64_t begin) {
    float* const row = p.b.staged;
    memset(b.query, 0, high * steps() * 2 * TILE_BYTES);
    memset(b.unit, 0, 4 * high * TILE_HEIGHT * 4);
    angles(begin, k.inv_freq, rope / 2, b.turn, b.turn + rope);
    for (int64_t m = 0; m < p.rows; m++) {
      char* to = b.query + m / TILE_HEIGHT * steps() * 2 * TILE_BYTES + m % TILE_HEIGHT * TILE_WIDTH;
      convert(query + m * stride, row, rank);
      memset(row + rank, 0, LANES * 4);
      unit(0)[m] = take_part(row, rank, to) * p.to_exponents / LEVEL_ONE;
      if (!rope) continue;
      convert(query + m * stride + rank, row, rope);
      memset(row + rope, 0, LANES * 4);
      unit(1)[m] =
          take_part(row, rope, to + latent_steps * 2 * TILE_BYTES) * p.to_exponents / LEVEL_ONE;
      memcpy(b.back + m * rope, row, rope * 4);
    }
    turn_back();
    angles(AMX_ROWS, k.inv_freq, rope / 2, b.turn, b.turn + rope);
  }

  // Turns b.back by the negative of the angles in b.turn.
  void turn_back() {
    const int64_t half = rope / 2;
    const float *cos = b.turn, *sin = b.turn + rope;
    for (int64_t m = 0; m < p.rows; m++) {
      float *x1 = b.back + m * rope, *x2 = x1 + half;
      for (int64_t j = 0; j < half; j += UNIT) {
        const __m256 c = _mm256_loadu_ps(cos + j), s = _mm256_loadu_ps(sin + j);
        const __m256 u = _mm256_loadu_ps(x1 + j), v = _mm256_loadu_ps(x2 + j);
        _mm256_storeu_ps(x1 + j, _mm256_fmadd_ps(u, c, _mm256_mul_ps(v, s)));
        _mm256_storeu_ps(x2 + j, _mm256_fmsub_ps(v, c, _mm256_mul_ps(u, s)));
      }
    }
  }

  // b.back in bfloat16, as tiles of A  # [high][rope/32][rows][32]
  void take_mean_queries() {
    const int64_t steps = tiles_of(rope, 32);
    memset(b.mean_query, 0, high * steps * TILE_BYTES);
    for (int64_t m = 0; m < p.rows; m++)
      for (int64_t j = 0; j < rope; j += LANES) {
        char* to = b.mean_query + (m / TILE_HEIGHT * steps + j / 32) * TILE_BYTES +
                   m % TILE_HEIGHT * TILE_WIDTH + j % 32 * 2;
        const __m256bh some = _mm512_cvtneps_pbh((__m512)load(b.back + m * rope + j));
        _mm256_storeu_si256((__m256i*)to, (__m256i)some);
      }
  }

  // Addresses of the step's groups, and its rows' scales; rows that are not there get the last's.
  void find_groups(int64_t begin, int64_t count) {
    const Cache& c = p.a.cache;
    const int32_t* blocks = p.a.batch.block_table + p.t.request * p.a.batch.table_stride;
    for (int64_t g = 0; g < AMX_GROUPS; g++) {
      const int64_t n = begin + (g * GROUP_ROWS < count ? g * GROUP_ROWS : (count - 1) / 8 * 8);
      const char* group = coded_group(c, blocks[n / c.block_size], n % c.block_size);
      const uint8_t* scales = scales_at(c, group);
      b.groups[g] = group;
      for (int64_t i = 0; i < GROUP_ROWS; i++) {
        b.scales[g * GROUP_ROWS + i] = k.scales[scales[i]];
        b.scales[AMX_ROWS + g * GROUP_ROWS + i] = k.scales[scales[GROUP_ROWS + i]];
      }
    }
  }

  // Where the keys of 32 rows are decoded to: every other 32 to the same place.
  char* keys_of(int64_t pair) const { return b.keys + pair % 2 * steps() * 2 * TILE_BYTES; }

  // Keys of 32 rows, from the step's row 32 `pair` on, for one step of the sum: two tiles of B.
  ALWAYS_INLINE void decode_step(int64_t pair, int64_t step) {
    const bool rotary = step >= latent_steps;
    const int64_t part = rotary ? k.latent_units : 0, end = part + (rotary ? k.rotary_units : k.latent_units);
    const int64_t first = part + (step - (rotary ? latent_steps : 0)) * UNITS_OF_STEP;
    const int64_t last = first + UNITS_OF_STEP < end ? first + UNITS_OF_STEP : end;
    const char* const* const group = b.groups + pair * 4;
    char* to = keys_of(pair) + step * 2 * TILE_BYTES;
    for (int64_t u = first; u < last; u++, to += 2 * TILE_WIDTH) {
      const int64_t bits = k.unit_bits[u], at = b.offsets[u];
      key_unit(group[0] + at, group[1] + at, bits, *b.levels, to);
      key_unit(group[2] + at, group[3] + at, bits, *b.levels, to + TILE_BYTES);
    }
  }

  // Sums over steps [begin, end) for 32 rows: high and low parts of two tiles. The keys of `next`,
  // if it is not negative, are decoded meanwhile, because AMX is a unit of its own.
  ALWAYS_INLINE void multiply_keys(const char* query, int64_t pair, int64_t begin, int64_t end,
                            int64_t next, int32_t* to) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t s = begin; s < end; s++) {
      const char *a = query + s * 2 * TILE_BYTES, *keys = keys_of(pair) + s * 2 * TILE_BYTES;
      _tile_loadd(4, a, TILE_WIDTH);
      _tile_loadd(6, keys, TILE_WIDTH);
      _tile_dpbssd(0, 4, 6);
      _tile_loadd(5, a + TILE_BYTES, TILE_WIDTH);
      _tile_dpbssd(1, 5, 6);
      _tile_loadd(7, keys + TILE_BYTES, TILE_WIDTH);
      _tile_dpbssd(2, 4, 7);
      _tile_dpbssd(3, 5, 7);
      if (next >= 0) decode_step(next, s);
    }
    _tile_stored(0, to, TILE_WIDTH);
    _tile_stored(1, to + 256, TILE_WIDTH);
    _tile_stored(2, to + 512, TILE_WIDTH);
    _tile_stored(3, to + 768, TILE_WIDTH);
  }

  void multiply_mean(int64_t i, int64_t pair) {
    const int64_t steps = tiles_of(rope, 32);
    _tile_zero(0);
    _tile_zero(1);
    for (int64_t s = 0; s < steps; s++) {
      const char* tiles = (const char*)k.mean_tiles + (s * (AMX_ROWS / 16) + 2 * pair) * TILE_BYTES;
      _tile_loadd(4, b.mean_query + (i * steps + s) * TILE_BYTES, TILE_WIDTH);
      _tile_loadd(6, tiles, TILE_WIDTH);
      _tile_loadd(7, tiles + TILE_BYTES, TILE_WIDTH);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
    }
    _tile_stored(0, b.biases, TILE_WIDTH);
    _tile_stored(1, b.biases + 256, TILE_WIDTH);
  }

  // 256 high + low, of 16 columns of one row.
  INLINE vf joined(const int32_t* sums) {
    const __m512i x = _mm512_load_si512(sums), y = _mm512_load_si512(sums + 256);
    return (vf)_mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32(x, 8), y));
  }

  // Scores of 32 rows of the step, as exponents of two; decodes the next 32 if there are.
  void score(int64_t pair, bool more) {
    for (int64_t i = 0; i < high; i++) {
      const char* query = b.query + i * steps() * 2 * TILE_BYTES;
      const int64_t next = more && i == 0 ? pair + 1 : -1;
      multiply_keys(query, pair, 0, latent_steps, next, b.sums);
      if (rope) {
        multiply_keys(query, pair, latent_steps, steps(), next, b.sums + 1024);
        multiply_mean(i, pair);
      }
      const int64_t left = p.rows - i * TILE_HEIGHT, rows = left < TILE_HEIGHT ? left : TILE_HEIGHT;
      for (int64_t n = 0; n < 2; n++) {
        const vf latent = load(b.scales + pair * 32 + n * LANES);
        const vf rotary = load(b.scales + AMX_ROWS + pair * 32 + n * LANES);
        for (int64_t m = 0; m < rows; m++) {
          const int64_t row = i * TILE_HEIGHT + m, at = n * 512 + m * LANES;
          vf x = joined(b.sums + at) * latent * unit(0)[row];
          if (rope) {
            x += joined(b.sums + 1024 + at) * rotary * unit(1)[row];
            x += load(b.biases + n * 256 + m * LANES) * p.to_exponents;
          }
          store(b.scores + row * AMX_ROWS + pair * 32 + n * LANES, x);
        }
      }
    }
  }

  // The part of a text's first row that is known beforehand  # query: bf16 [rows, width]
  void score_first_row(const bf16* query, int64_t stride) {
    for (int64_t m = 0; m < p.rows; m++) {
      vf sum = {};
      for (int64_t j = 0; j < rank + rope; j += UNIT) {
        const vf q = load_some(query + m * stride + j, UNIT);
        sum += q * load_some(k.first_row + j, UNIT);
      }
      b.scores[m * AMX_ROWS] += horizontal_sum(sum) * p.to_exponents;
    }
  }

  // Scores to weights, and these times the rows' scales to bytes of A.
  void weigh(int64_t begin, int64_t count, bool first) {
    const int64_t columns = round_up(count, TILE_WIDTH);
    for (int64_t m = 0; m < p.rows; m++) {
      float* const row = b.scores + m * AMX_ROWS;
      const int64_t seen = p.visible + m / p.s.heads - begin;
      const int64_t shown = seen < 0 ? 0 : seen < count ? seen : count;
      for (int64_t i = shown; i < columns; i++) row[i] = -__builtin_inff();
      softmax_row<false>(row, columns, p.b.maxima + m, p.b.carry + m, p.b.sums + m * LANES);
      if (first) unit(3)[m] = row[0];
      for (int64_t j = 0; j < columns; j += LANES) store(row + j, load(row + j) * load(b.scales + j));
      const float largest = largest_of(row, columns);
      char* to = b.weights + m / TILE_HEIGHT * (AMX_ROWS / TILE_WIDTH) * 2 * TILE_BYTES +
                 m % TILE_HEIGHT * TILE_WIDTH;
      for (int64_t j = 0; j < columns; j += TILE_WIDTH, to += 2 * TILE_BYTES)
        split_bytes(row + j, largest > 0 ? FIFTEEN_BITS / largest : 0.0f, TILE_WIDTH, to);
      unit(2)[m] = largest / FIFTEEN_BITS / LEVEL_ONE;
    }
  }

  // Values of 16 columns of the step's first groups, as tiles of B.
  ALWAYS_INLINE void decode_values(int64_t panel, int64_t groups) {
    const int64_t u = 2 * panel, bits = k.unit_bits[u], at = b.offsets[u];
    const bool both = u + 1 < k.latent_units;
    const int64_t next = both ? k.unit_bits[u + 1] : 0;
    char* to = values_of(panel);
    for (int64_t g = 0; g < groups; g++, to += 2 * TILE_WIDTH) {
      const char* unit = b.groups[g] + at;
      value_units(unit, bits, both ? unit + GROUP_ROWS * bits : nullptr, next, *b.levels, to);
    }
  }
  char* values_of(int64_t panel) const { return b.values + panel % 2 * 2 * TILE_BYTES; }

  // Adds the step's values to b.out, a panel of 16 columns at a time; the next panel is decoded
  // while AMX multiplies.
  void add_values(int64_t count, bool first) {
    const int64_t sums = tiles_of(count, TILE_WIDTH), stride = p.s.out_stride;
    const int64_t panels = p.s.widths.value_panels;
    decode_values(0, sums * 8);
    for (int64_t panel = 0; panel < panels; panel++)
      for (int64_t i = 0; i < high; i++) {
        const char* weights = b.weights + i * (AMX_ROWS / TILE_WIDTH) * 2 * TILE_BYTES;
        _tile_zero(0);
        _tile_zero(1);
        for (int64_t s = 0; s < sums; s++) {
          _tile_loadd(4, weights + s * 2 * TILE_BYTES, TILE_WIDTH);
          _tile_loadd(6, values_of(panel) + s * TILE_BYTES, TILE_WIDTH);
          _tile_dpbssd(0, 4, 6);
          _tile_loadd(5, weights + s * 2 * TILE_BYTES + TILE_BYTES, TILE_WIDTH);
          _tile_dpbssd(1, 5, 6);
        }
        if (i == 0 && panel + 1 < panels) decode_values(panel + 1, sums * 8);
        _tile_stored(0, b.sums, TILE_WIDTH);
        _tile_stored(1, b.sums + 256, TILE_WIDTH);
        const int64_t left = p.rows - i * TILE_HEIGHT, rows = left < TILE_HEIGHT ? left : TILE_HEIGHT;
        for (int64_t m = 0; m < rows; m++) {
          const int64_t row = i * TILE_HEIGHT + m;
          float* const out = p.b.out + row * stride + panel * LANES;
          store(out, load(out) * p.b.carry[row] + joined(b.sums + m * LANES) * unit(2)[row]);
        }
      }
    for (int64_t m = 0; first && m < p.rows; m++)
      for (int64_t j = 0; j < rank; j++) p.b.out[m * stride + j] += unit(3)[m] * k.first_row[j];
  }
};

static void attend_amx(const Progress& p, const AmxBuffers& b) {
  AmxTile x(p, b);
  const Tile& t = p.t;
  const bf16* const query = (const bf16*)p.b.query;
  const int64_t stride = p.s.widths.key_steps * 2;
  repeat_levels(x.k.books, *b.levels);
  int64_t offset = 0;
  for (int64_t u = 0; u < x.k.latent_units + x.k.rotary_units; u++) {
    b.offsets[u] = offset;
    offset += GROUP_ROWS * x.k.unit_bits[u];
  }
  configure_tiles(p.rows < TILE_HEIGHT ? p.rows : TILE_HEIGHT);
  x.take_queries(query, stride, t.begin);
  for (int64_t begin = t.begin; begin < t.end; begin += AMX_ROWS) {
    const int64_t count = t.end - begin < AMX_ROWS ? t.end - begin : AMX_ROWS;
    const bool first = begin == 0;
    if (begin > t.begin) x.turn_back();
    if (x.rope) x.take_mean_queries();
    x.find_groups(begin, count);
    const int64_t pairs = round_up(count, TILE_WIDTH) / 32;
    for (int64_t step = 0; step < x.steps(); step++) x.decode_step(0, step);
    for (int64_t pair = 0; pair < pairs; pair++) x.score(pair, pair + 1 < pairs);
    if (first) x.score_first_row(query, stride);
    x.weigh(begin, count, first);
    x.add_values(count, first);
  }
  _tile_release();
}

#endif
