// What Python passes in (structures.py mirrors these structures) and what every instruction set
// variant implements. Strides are in elements; the innermost dimension is contiguous everywhere.
#pragma once

#include <stdint.h>

enum DType : int64_t { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2, CODED = 3 };

// Levels that numbers of so many bits are rounded to; `vllm_mha2mla/coding` says what all this is.
struct Codebook {
  int8_t levels[256];        // rising; a code is an index into them; repeated after the last
  int8_t second_levels[64];  // of the second code in an index of two, the first in its low bits
  float borders[256];        // between neighbouring levels, relative to the row's scale
  float inverse_gain2;       // one over the square of the gain
};

// A layer's coded rows: bytes in the order of `coding/packing.py`.
struct Coded {
  const int64_t* unit_bits;  // [latent_units + rotary_units]
  const int64_t* unit_runs;  // [latent_units + rotary_units]: units from here on of the same bits
  int64_t latent_units, rotary_units;
  const Codebook* books;     // [9], by bits
  const float* scales;       // [256]: of each byte
  const float* inv_freq;     // [rope/2]
  const float* turned_mean;  // [TURNS, rope]: the mean of rotary columns, turned to each position
  const float* first_row;    // [rank + rope]
  // Pairs of different heads have the same frequencies, and of those each is here once.
  int64_t frequencies;            // with zeros behind, a multiple of 16
  const float* frequency;         // [frequencies]
  const int32_t* frequency_of;    // [rope/2]: of each pair
  // 127 cos of r theta_j for all frequencies, then 127 sin, for r < TABLE_ROWS, in the order of keys
  // in `levels.h`: [TABLE_ROWS / 16][chunks of 64 columns][16 quads of columns][16 rows][4]
  const int8_t* turns;
};
constexpr int64_t TURNS = 128, TABLE_ROWS = 1024;

struct Cache {  // [blocks, block_size, width]; a coded one: bytes [blocks, block_size, row_stride]
  void* data;
  int64_t dtype, block_stride, row_stride, block_size, width;
  const Coded* coded;  // null where rows are stored as they are
};

inline int64_t bytes_per_element(const Cache& c) {
  return c.dtype == FLOAT32 ? 4 : c.dtype == CODED ? 1 : 2;
}

struct Batch {
  const int32_t* block_table;  // [requests, max_blocks]
  int64_t table_stride;
  const int32_t* query_start;  // [requests + 1]
  const int32_t* seq_lens;     // [requests]
  int64_t requests;
};

struct Attention {
  Cache cache;
  Batch batch;
  const void* query;  // [tokens, heads, width]
  int64_t query_dtype, query_token, query_head;
  void* out;  // [tokens, heads, rank]
  int64_t out_dtype, out_token, out_head;
  int64_t heads, rank;
  double scale;
};

struct Write {
  Cache cache;
  const void* kv_latent;  // [tokens, width]
  int64_t kv_latent_dtype, kv_latent_token;
  const int64_t* slots;  // [tokens]; negative: padding
  int64_t tokens;
};

// A layer between its projections: rotary embedding, cache write, absorption, attention.
struct Layer {
  Cache cache;
  const float* inv_freq;      // [rope/2]
  const float *w_uk, *w_uv;   // as packed by pack_weights
  int64_t dtype;              // of queries, new latents and outputs
  int64_t heads, nope, rope, rank, v;
  double scale;
};

struct Step {
  Batch batch;
  const int64_t* slots;      // [tokens]
  const int64_t* positions;  // [tokens]
  int64_t tokens;
  const void* query;  // [tokens, heads * (nope + rope)]
  int64_t query_token;
  const void* kv_latent;  // [tokens, rank + rope], not rotated
  int64_t kv_latent_token;
  void* out;  // [tokens, heads * v]
  int64_t out_token;
};

struct Weights {
  const void* data;  // [heads, inputs, outputs] through its strides
  int64_t dtype, head, input, output;
  int64_t heads, inputs, outputs;
  int64_t cache_dtype;
  float* packed;
};

// Return values.
enum { DONE = 0, OUT_OF_MEMORY = 1 };

struct Variant {
  const char* name;
  int (*write)(const Write*);
  int (*attend)(const Attention*);
  int (*layer)(const Layer*, const Step*);
  int64_t (*packed_size)(const Weights*);  // in floats
  void (*pack)(const Weights*);
  void (*exp2)(const float*, float*, int64_t);  // called by tests only
};
