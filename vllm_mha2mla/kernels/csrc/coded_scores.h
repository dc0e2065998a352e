// Scores of coded rows, panel by panel: one is read while the one before is multiplied.
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

// The next panel's keys, read chunk by chunk between the products of the one before.
struct NextKeys {
  const CodedProgress& c;
  KeyReader reader;
  uint8_t* to;

  void read(int64_t chunk) {
    const int64_t rotary = chunk - c.s.first[ROTARY], latent_units = c.k.latent_units;
    const int64_t units = rotary < 0 ? latent_units : latent_units + c.k.rotary_units;
    const int64_t last = rotary < 0 ? (chunk + 1) * 8 : latent_units + (rotary + 1) * 8;
    read_keys(reader, last < units ? last : units, to + chunk * TILE_BYTES);
  }
};

// Products of one panel's keys with a tile of A, while the next panel's keys are read.
INLINE void multiply_keys(const CodedProgress& c, int64_t tile, const uint8_t* keys,
                          const uint8_t* mean, int32_t* products, NextKeys* next) {
  const uint8_t* const a = c.b.query + tile * c.s.query_tile;
  const int64_t first = tile * c.s.height, left = c.p.rows - first;
  const int64_t rows = left < c.s.height ? left : c.s.height;
  for (int part = 0; part < PARTS; part++) {
    const int64_t begin = c.s.first[part];
    if (!c.s.chunks[part]) continue;
    multiply<true>(a + begin * 2 * TILE_BYTES, part == MEAN ? mean : keys + begin * TILE_BYTES,
                   c.s.chunks[part], rows, products + part * 2 * C_LIMB, [&](int64_t chunk) {
                     if (next && part != MEAN) next->read(begin + chunk);
                   });
  }
}

// The scores that products of a panel and a tile of A are.
static void score_panel(const CodedProgress& c, int64_t panel, int64_t tile,
                        const int32_t* products) {
  const int32_t unit = (int32_t)LEVEL_ONE;
  const vf latent = load(c.b.scales[LATENT] + panel * PANEL_ROWS);
  const vf rotary = load(c.b.scales[ROTARY] + panel * PANEL_ROWS);
  const int64_t first = tile * c.s.height;
  for (int64_t m = first; m < first + c.s.height && m < c.p.rows; m++) {
    vf sum[PARTS] = {};
    for (int part = 0; part < PARTS; part++) {
      const int32_t* sums = c.b.sums[m][part];
      const int32_t offsets[2] = {sums[0] * unit, sums[1] * unit};
      if (c.s.chunks[part])
        sum[part] = sum_of(products + part * 2 * C_LIMB, m - first, offsets) * c.b.steps[m][part];
    }
    store(c.p.b.scores + m * CODED_STEP + panel * PANEL_ROWS,
          sum[LATENT] * latent + sum[ROTARY] * rotary + sum[MEAN]);
  }
}

// Scores of rows [begin, begin + count).
static void score_codes(const CodedProgress& c, int64_t begin, int64_t count,
                        const uint8_t* const groups[STEP_GROUPS],
                        const uint8_t* const ahead[STEP_GROUPS]) {
  const int64_t panels = (count + PANEL_ROWS - 1) / PANEL_ROWS;
  const int64_t keys_bytes = c.s.all_chunks * TILE_BYTES;
  const int64_t scales = (c.p.a.cache.row_stride - 2) * GROUP_ROWS;
  const uint8_t* mean =
      c.k.turns + begin % TABLE_ROWS / PANEL_ROWS * c.s.chunks[MEAN] * TILE_BYTES;
  auto keys_of = [&](int64_t panel, NextKeys& next) {
    const uint8_t* const own[2] = {groups[2 * panel], groups[2 * panel + 1]};
    for (int i = 0; i < 2; i++) {
      const int64_t at = scales + i * GROUP_ROWS;
      store(c.b.scales[i] + panel * PANEL_ROWS, scales_of(c.k, own[0] + at, own[1] + at));
    }
    next.reader = {&c.k, {own[0], own[1]}, {ahead[2 * panel], ahead[2 * panel + 1]}, 0};
    next.to = c.b.keys + panel % 2 * keys_bytes;
  };
  NextKeys next = {c, {}, nullptr};
  keys_of(0, next);
  for (int64_t chunk = 0; chunk < c.s.first[MEAN]; chunk++) next.read(chunk);
  // Scores are computed one product later, when it has long been stored.
  int64_t done = 0;
  auto score = [&] {
    score_panel(c, done / c.s.tiles, done % c.s.tiles,
                c.b.products + done % 2 * PARTS * 2 * C_LIMB);
    done++;
  };
  for (int64_t panel = 0, product = 0; panel < panels; panel++) {
    const uint8_t* const keys = c.b.keys + panel % 2 * keys_bytes;
    const bool more = panel + 1 < panels;
    if (more) keys_of(panel + 1, next);
    for (int64_t tile = 0; tile < c.s.tiles; tile++, product++) {
      multiply_keys(c, tile, keys, mean + panel * c.s.chunks[MEAN] * TILE_BYTES,
                    c.b.products + product % 2 * PARTS * 2 * C_LIMB,
                    tile || !more ? nullptr : &next);
      if (product) score();
    }
  }
  score();
}

#endif
