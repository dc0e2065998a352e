// Scratch of attention over coded rows, and the state of one tile on its way through them.
#pragma once

#include "attention.h"
#include "products.h"

#if defined(__AVX512VBMI__) && defined(__AVX512VNNI__)

// Rows that one product with values sums over.
constexpr int64_t VALUE_ROWS = 64;
constexpr int64_t STEP_GROUPS = CODED_STEP / GROUP_ROWS, STEP_PANELS = CODED_STEP / PANEL_ROWS;

// What scores are the sum of.
enum Part { LATENT, ROTARY, MEAN, PARTS };

struct CodedShape {
  int64_t chunks[PARTS], first[PARTS];  // chunks of 64 columns of each part
  int64_t all_chunks, height, tiles;    // of rows of A
  int64_t query_tile;                   // bytes
};

static CodedShape coded_shape(const Coded& k, int64_t rows) {
  CodedShape s = {};
  const int64_t units[PARTS] = {k.latent_units, k.rotary_units, k.rotary_units};
  for (int part = 0; part < PARTS; part++) {
    s.first[part] = s.all_chunks;
    s.chunks[part] = (units[part] + 7) / 8;
    s.all_chunks += s.chunks[part];
  }
  s.tiles = (rows + HEIGHT - 1) / HEIGHT;
  s.height = (rows + s.tiles - 1) / s.tiles;
  s.query_tile = s.all_chunks * 2 * TILE_BYTES;
  return s;
}

// Scratch of one worker.
struct CodedBuffers {
  uint8_t* query;    // [tiles][chunks][2 limbs][HEIGHT][64]
  uint8_t* keys;     // [2][chunks][16][16][4]
  uint8_t* weights;  // [tiles][CODED_STEP / VALUE_ROWS][2 limbs][HEIGHT][64]
  uint8_t* values;   // [2][CODED_STEP / VALUE_ROWS][16][16][4]
  int32_t* products;                // [2][PARTS][2 limbs][16][16]
  int32_t (*sums)[PARTS][2];        // [rows]: of the limbs of A, as B's bytes are levels + 128
  float (*steps)[PARTS];            // [rows]: of the limbs, with the factor of all scores
  float* row;                       // [width]
  float* scales[2];                 // [CODED_STEP]: of levels, latent and rotary
  float* firsts;                    // [rows]: q . f
};

// Lays them out from `base`; returns the bytes they take.
static size_t lay_out_coded(const Coded& k, int64_t rows, char* base, CodedBuffers* buffers) {
  const CodedShape s = coded_shape(k, rows);
  size_t used = 0;
  auto take = [&](int64_t bytes) {
    char* start = base + used;
    used += round_up(bytes, 64);
    return start;
  };
  constexpr int64_t blocks = CODED_STEP / VALUE_ROWS;
  CodedBuffers b;
  b.query = (uint8_t*)take(s.tiles * s.query_tile);
  b.keys = (uint8_t*)take(2 * s.all_chunks * TILE_BYTES);
  b.weights = (uint8_t*)take(s.tiles * blocks * 2 * TILE_BYTES);
  b.values = (uint8_t*)take(2 * blocks * TILE_BYTES);
  b.products = (int32_t*)take(2 * PARTS * 2 * C_LIMB * 4);
  b.sums = (int32_t(*)[PARTS][2])take(rows * sizeof(*b.sums));
  b.steps = (float(*)[PARTS])take(rows * sizeof(*b.steps));
  b.row = (float*)take((k.latent_units + k.rotary_units) * UNIT * 4);
  for (auto& scales : b.scales) scales = (float*)take(CODED_STEP * 4);
  b.firsts = (float*)take(rows * 4);
  if (buffers) *buffers = b;
  return used;
}

// One tile's way through its rows.
struct CodedProgress {
  const Progress& p;
  const Coded& k;
  const CodedShape& s;
  const CodedBuffers& b;
};

// Sums of both limbs of row m of A, without what B's bytes are too large by.
INLINE vf sum_of(const int32_t* products, int64_t m, const int32_t offsets[2]) {
  const __m512i high = _mm512_load_si512(products + m * LANES);
  const __m512i low = _mm512_load_si512(products + C_LIMB + m * LANES);
  const vf top = (vf)_mm512_cvtepi32_ps(_mm512_sub_epi32(high, _mm512_set1_epi32(offsets[0])));
  const vf rest = (vf)_mm512_cvtepi32_ps(_mm512_sub_epi32(low, _mm512_set1_epi32(offsets[1])));
  return top * 256.0f + rest;
}

#endif
