// Scratch of attention over coded rows, and the state of one tile on its way through them.
#pragma once

#include "attention.h"
#include "products.h"

#if defined(__AVX512VBMI__) && defined(__AVX512VNNI__)

constexpr int64_t STEP_GROUPS = CODED_STEP / GROUP_ROWS;

// What scores are the sum of.
enum Part { LATENT, ROTARY, MEAN, PARTS };

INLINE int64_t units_of(const Coded& k, int part) {
  return part == LATENT ? k.latent_units : part == ROTARY ? k.rotary_units
                                                         : 2 * k.frequencies / UNIT;
}

struct CodedShape {
  int64_t chunks[PARTS], first[PARTS];  // chunks of 64 columns of each part
  int64_t all_chunks, height, tiles;    // of rows of A
  int64_t query_tile;                   // bytes
  // Pairs of B's tiles that are kept, and how many are read ahead of the product: a few that stay in
  // L1 where all rows of A are one tile, else those of this product and of the next.
  int64_t key_slots, keys_ahead, value_slots, values_ahead;
};

// Rows that one product with values sums over; chunks that are read ahead for one tile of A.
constexpr int64_t VALUE_ROWS = 64, STEP_BLOCKS = CODED_STEP / VALUE_ROWS, FEW_AHEAD = 1;

static CodedShape coded_shape(const Coded& k, int64_t rows) {
  CodedShape s = {};
  for (int part = 0; part < PARTS; part++) {
    s.first[part] = s.all_chunks;
    s.chunks[part] = (units_of(k, part) + 7) / 8;
    s.all_chunks += s.chunks[part];
  }
  s.tiles = (rows + HEIGHT - 1) / HEIGHT;
  s.height = (rows + s.tiles - 1) / s.tiles;
  s.query_tile = s.all_chunks * 2 * TILE_BYTES;
  const bool few = READS_BETWEEN && s.tiles == 1;
  s.keys_ahead = few ? FEW_AHEAD : s.first[MEAN];
  s.values_ahead = few ? FEW_AHEAD : STEP_BLOCKS;
  s.key_slots = few ? FEW_AHEAD + 1 : 2 * s.keys_ahead;
  s.value_slots = few ? FEW_AHEAD + 1 : 2 * s.values_ahead;
  return s;
}

// Scratch of one worker.
struct CodedBuffers {
  uint8_t* query;    // [tiles][chunks][2 limbs][HEIGHT][64]
  uint8_t* keys;     // [slots][2 panels][16][16][4]
  uint8_t* weights;  // [tiles][STEP_BLOCKS][2 limbs][HEIGHT][64]
  uint8_t* values;   // [slots][2 panels][16][16][4]
  int32_t* products;               // [2][2 panels][2 limbs][16][16]
  int32_t (*sums)[PARTS][2];       // [rows]: of the bytes of A's limbs
  float (*steps)[PARTS];           // [rows]: of the limbs, with the factor of all scores
  float* row;                      // [width]
  float* means;                    // [rows][2][frequencies]: queries times the mean
  float* scales[2];                // [CODED_STEP]: of levels, latent and rotary
  float* firsts;                   // [rows]: q . f
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
  CodedBuffers b;
  b.query = (uint8_t*)take(s.tiles * s.query_tile);
  b.keys = (uint8_t*)take(s.key_slots * PAIR_BYTES);
  b.weights = (uint8_t*)take(s.tiles * STEP_BLOCKS * 2 * TILE_BYTES);
  b.values = (uint8_t*)take(s.value_slots * PAIR_BYTES);
  b.products = (int32_t*)take(2 * C_PRODUCT * 4);
  b.sums = (int32_t(*)[PARTS][2])take(rows * sizeof(*b.sums));
  b.steps = (float(*)[PARTS])take(rows * sizeof(*b.steps));
  b.row = (float*)take(((k.latent_units + k.rotary_units) * UNIT + 2 * LANES) * 4);
  b.means = (float*)take(rows * 2 * k.frequencies * 4);
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

// The pairs of tiles in a ring of slots.
INLINE Pairs slots_of(uint8_t* slots, int64_t count) {
  return {slots, 0, PAIR_BYTES, count * PAIR_BYTES, TILE_BYTES};
}

// Sums of both limbs of row m of A and one panel of B.
INLINE vf sum_of(const int32_t* products, int64_t panel, int64_t m) {
  const int32_t* const own = products + panel * 2 * C_LIMB + m * LANES;
  const vf top = (vf)_mm512_cvtepi32_ps(_mm512_load_si512(own));
  const vf rest = (vf)_mm512_cvtepi32_ps(_mm512_load_si512(own + C_LIMB));
  return top * 256.0f + rest;
}

#endif
