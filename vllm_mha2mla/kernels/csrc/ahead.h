// The cache lines of rows to come, asked for a few at a time beside the products.
//
// A cache is spread over memory block by block, and the hardware stops at the end of each; memory
// has to work all the time, not in bursts between the products.
#pragma once

#include "kernel.h"
#include "vec.h"

// Rows from where products are to where lines are asked for: what L1 holds beside the sums.
constexpr int64_t ROWS_AHEAD = 64;

struct Tile {
  int64_t request;
  int64_t first, queries;  // of the batch
  int64_t begin, end;      // cache rows
  int64_t partial;         // where the result goes; negative: to the output
};

// A stream over the rows of tiles that one thread takes in turn.
struct Ahead {
  const Cache* cache;
  const Batch* batch;
  const Tile *tile, *last;  // being asked for; past the last
  int64_t row;              // of the tile, where the next run begins
  const char* line;
  int64_t left, step;  // bytes: to the end of the run, from line to line
  int64_t lead;        // bytes from the rows in work to the end of the run
};

INLINE int64_t bytes_of(const Cache& c, int64_t rows) {
  return rows * c.row_stride * (c.dtype == FLOAT32 ? 4 : 2);
}

INLINE Ahead ahead_of(const Cache& cache, const Batch& batch, const Tile* tile, const Tile* last) {
  return {&cache, &batch, tile, last, tile->begin, nullptr, 0, 64, 0};
}

// Asks for nothing, without end.
INLINE void stop(Ahead& a) {
  static const char nothing = 0;
  a.line = &nothing;
  a.left = a.lead = INT64_MAX / 2;
  a.step = 0;
}

// Goes on to the rows' next run, which ends with their block.
static void __attribute__((noinline)) next_run(Ahead& a) {
  if (a.tile < a.last && a.row >= a.tile->end && ++a.tile < a.last) a.row = a.tile->begin;
  if (a.tile >= a.last) return stop(a);
  const Cache& c = *a.cache;
  const int32_t* blocks = a.batch->block_table + a.tile->request * a.batch->table_stride;
  const int64_t offset = a.row % c.block_size, in_block = c.block_size - offset;
  const int64_t wanted = a.tile->end - a.row, rows = in_block < wanted ? in_block : wanted;
  const int64_t block = blocks[a.row / c.block_size];
  a.line = (const char*)c.data + bytes_of(c, offset) +
           block * c.block_stride * (c.dtype == FLOAT32 ? 4 : 2);
  a.left = bytes_of(c, rows);
  a.lead += a.left;
  a.row += rows;
}

// The first of so many lines, `step` apart, for the caller to ask for.
INLINE const char* take_lines(Ahead& a, int64_t lines) {
  if (a.left <= 0) next_run(a);
  const char* const line = a.line;
  a.line += lines * a.step;
  a.left -= lines * 64;
  return line;
}

// Asks for a number of lines so few that they need no loop, which would take longer than they do.
template <int LINES>
INLINE void ask_for(Ahead& a) {
  const char* const line = take_lines(a, LINES);
#pragma GCC unroll 8
  for (int i = 0; i < LINES; i++) __builtin_prefetch(line + i * a.step, 0, 3);
}

// Asks for what is missing of ROWS_AHEAD.
INLINE void catch_up(Ahead& a) {
  const int64_t wanted = bytes_of(*a.cache, ROWS_AHEAD);
  while (a.lead - (a.left > 0 ? a.left : 0) < wanted) ask_for<8>(a);
}
