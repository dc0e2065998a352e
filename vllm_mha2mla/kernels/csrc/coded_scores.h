// Scores of coded rows, two panels at a time: the next are read while the ones before are multiplied.
#pragma once

#include "coded_buffers.h"

#if defined(__AVX512VBMI__) && defined(__AVX512VNNI__)

// scale / LEVEL_ONE of 16 rows, from two groups' bytes: 2^((byte - 128) / 8 - 7).
INLINE vf scales_of(const Coded& k, const uint8_t* first, const uint8_t* second) {
  const __m128i bytes = _mm_unpacklo_epi64(_mm_loadl_epi64((const __m128i*)first),
                                           _mm_loadl_epi64((const __m128i*)second));
  const __m512i wide = _mm512_cvtepu8_epi32(bytes);
  const __m512 eighths = _mm512_castps256_ps512(_mm256_loadu_ps(k.scales + 128));
  const __m512 fraction =
      _mm512_permutexvar_ps(_mm512_and_si512(wide, _mm512_set1_epi32(7)), eighths);
  const __m512i octaves = _mm512_sub_epi32(_mm512_srli_epi32(wide, 3), _mm512_set1_epi32(16 + 7));
  return (vf)_mm512_add_epi32((__m512i)fraction, _mm512_slli_epi32(octaves, 23));
}

// The keys of a step, read ahead of their products chunk by chunk of both panels.
struct Keys {
  const CodedProgress& c;
  const uint8_t* const* groups;
  const uint8_t* const* ahead;
  int64_t pairs;  // of panels
  Pairs slots;
  KeyReader readers[2];
  int64_t pair = 0, chunk = 0;  // to be read next

  // Reads the next chunk, if there is one.
  void read() {
    if (pair == pairs) return;
    if (chunk == 0) open();
    const int64_t rotary = chunk - c.s.first[ROTARY], latent_units = c.k.latent_units;
    const int64_t units = rotary < 0 ? latent_units : latent_units + c.k.rotary_units;
    const int64_t last = rotary < 0 ? (chunk + 1) * 8 : latent_units + (rotary + 1) * 8;
    uint8_t* const to = (uint8_t*)slots.next();
    for (int64_t i = 0; i < 2; i++)
      read_keys(readers[i], last < units ? last : units, to + i * slots.second);
    if (++chunk == c.s.first[MEAN]) chunk = 0, pair++;
  }

  void open() {
    const int64_t scales = (c.p.a.cache.row_stride - 2) * GROUP_ROWS;
    for (int64_t i = 0; i < 2; i++) {
      const int64_t panel = 2 * pair + i;
      const uint8_t *const *own = groups + 2 * panel, *const *later = ahead + 2 * panel;
      readers[i] = {&c.k, {own[0], own[1]}, {later[0], later[1]}, 0, 0, 0};
      for (int64_t kind = 0; kind < 2; kind++) {
        const int64_t at = scales + kind * GROUP_ROWS;
        store(c.b.scales[kind] + panel * PANEL_ROWS, scales_of(c.k, own[0] + at, own[1] + at));
      }
    }
  }
};

// Adds one part of the scores of a pair of panels and a tile of A, or begins with it.
INLINE void add_scores(const CodedProgress& c, int64_t pair, int64_t tile, int part, bool begins,
                       const int32_t* products) {
  const int64_t first = tile * c.s.height, last = first + c.s.height;
  for (int64_t i = 0; i < 2; i++) {
    const int64_t column = (2 * pair + i) * PANEL_ROWS;
    const vf scale = part == MEAN ? splat(1.0f) : load(c.b.scales[part] + column);
    float* to = c.p.b.scores + first * CODED_STEP + column;
    for (int64_t m = first; m < last && m < c.p.rows; m++, to += CODED_STEP) {
      const vf sum = sum_of(products, i, m - first) * (scale * c.b.steps[m][part]);
      store(to, begins ? sum : load(to) + sum);
    }
  }
}

// Scores of rows [begin, begin + count).
static void score_codes(const CodedProgress& c, int64_t begin, int64_t count,
                        const uint8_t* const groups[STEP_GROUPS],
                        const uint8_t* const ahead[STEP_GROUPS]) {
  const int64_t pairs = (count + 2 * PANEL_ROWS - 1) / (2 * PANEL_ROWS);
  const int64_t mean_bytes = c.s.chunks[MEAN] * TILE_BYTES;
  const uint8_t* const mean = (const uint8_t*)c.k.turns + begin % TABLE_ROWS / PANEL_ROWS * mean_bytes;
  Pairs own = slots_of(c.b.keys, c.s.key_slots);
  Keys keys = {c, groups, ahead, pairs, own, {}};
  for (int64_t i = 0; i < c.s.keys_ahead; i++) keys.read();
  // Scores are added one product later, when it has long been stored.
  struct {
    int64_t pair, tile, part;
  } last = {-1, 0, 0};
  int64_t product = 0;
  auto add = [&] {
    if (last.pair >= 0)
      add_scores(c, last.pair, last.tile, last.part, last.part == LATENT,
                 c.b.products + (product + 1) % 2 * C_PRODUCT);
  };
  for (int64_t pair = 0; pair < pairs; pair++) {
    const Pairs of_pair = own;
    for (int64_t tile = 0; tile < c.s.tiles; tile++) {
      own = of_pair;
      const int64_t first = tile * c.s.height, left = c.p.rows - first;
      for (int part = 0; part < PARTS; part++) {
        if (!c.s.chunks[part]) continue;
        Pairs turns = {mean + 2 * pair * mean_bytes, 0, TILE_BYTES, mean_bytes, mean_bytes};
        multiply<true>(c.b.query + tile * c.s.query_tile + c.s.first[part] * 2 * TILE_BYTES,
                       part == MEAN ? turns : own, c.s.chunks[part],
                       left < c.s.height ? left : c.s.height, c.b.sums[first][part], 2 * PARTS,
                       c.b.products + product % 2 * C_PRODUCT, [&](int64_t) {
                         if (tile == 0 && part != MEAN) keys.read();
                       });
        add();
        last = {pair, tile, part};
        product++;
      }
    }
  }
  add();
}

#endif
