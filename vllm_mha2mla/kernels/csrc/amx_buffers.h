// Scratch of the attention in `amx.h`.
#pragma once

#include "amx_tables.h"

#if defined(__AMX_INT8__) && defined(__AVX512VBMI__)
constexpr bool HAS_AMX = true;
#else
constexpr bool HAS_AMX = false;
#endif

#if defined(__AMX_INT8__) && defined(__AVX512VBMI__)

// Bytes of a tile, of its rows, and how many rows it has.
constexpr int64_t TILE_BYTES = 1024, TILE_WIDTH = 64, TILE_HEIGHT = 16;
// Cache rows of a step; the mean is turned for as many.
constexpr int64_t AMX_ROWS = TURNS, AMX_GROUPS = AMX_ROWS / GROUP_ROWS;
INLINE int64_t tiles_of(int64_t n, int64_t each) { return (n + each - 1) / each; }

// Scratch of one worker for tiles of up to `rows` rows of A.
struct AmxBuffers {
  char *query, *mean_query, *keys, *values, *weights;
  int32_t* sums;      // two pairs of tiles of C
  float *biases;      // two tiles of C
  float *scores;      // [rows, AMX_ROWS]
  float *unit;        // of A's rows as integers: latent, rotary, weights; first weights  # [4, rows]
  float *scales;      // latent and rotary scales of a step's rows  # [2, AMX_ROWS]
  float *back;        // rotary queries, turned back to the step's first row  # [rows, rope]
  float *turn;        // cosines and sines of a position  # [2, rope]
  const char** groups;
  int64_t* offsets;   // of units in a group, in bytes
  Levels* levels;
};

static size_t lay_out_amx(const Coded& k, int64_t rows, char* base, AmxBuffers* buffers) {
  size_t used = 0;
  auto take = [&](int64_t bytes) {
    char* start = base + used;
    used += round_up(bytes, 64);
    return start;
  };
  const int64_t high = tiles_of(rows, TILE_HEIGHT), rope = rope_of(k);
  const int64_t steps = tiles_of(rank_of(k), TILE_WIDTH) + tiles_of(rope, TILE_WIDTH);
  AmxBuffers b;
  b.query = take(high * steps * 2 * TILE_BYTES);
  b.mean_query = take(high * tiles_of(rope, 32) * TILE_BYTES);
  b.keys = take(2 * steps * 2 * TILE_BYTES);
  b.offsets = (int64_t*)take((k.latent_units + k.rotary_units) * sizeof(int64_t));
  b.values = take(2 * 2 * TILE_BYTES);
  b.weights = take(high * (AMX_ROWS / TILE_WIDTH) * 2 * TILE_BYTES);
  b.sums = (int32_t*)take(8 * TILE_BYTES);
  b.biases = (float*)take(2 * TILE_BYTES);
  b.scores = (float*)take(high * TILE_HEIGHT * AMX_ROWS * 4);
  b.unit = (float*)take(4 * high * TILE_HEIGHT * 4);
  b.scales = (float*)take(2 * AMX_ROWS * 4);
  b.back = (float*)take(rows * (rope + LANES) * 4);
  b.turn = (float*)take(2 * (rope + LANES) * 4);
  b.groups = (const char**)take((AMX_GROUPS + 1) * sizeof(char*));
  b.levels = (Levels*)take(sizeof(Levels));
  if (buffers) *buffers = b;
  return used;
}

#endif

