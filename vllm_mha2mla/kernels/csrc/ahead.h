// Prefetches the cache rows that are needed next, a few lines at a time between multiplications.
//
// The hardware's own prefetching stops at the end of each block of the paged cache. Memory has to
// work all the time, not in bursts between the products.
#pragma once

#include "kernel.h"
#include "vec.h"

// How many rows the prefetches are ahead of the products: as many as L1 holds beside the sums.
constexpr int64_t ROWS_AHEAD = 64;

struct Tile {
  int64_t request;
  int64_t first, queries;  // the queries, counted through the batch
  int64_t begin, end;      // the cache rows of the request
  int64_t partial;         // place of the partial result; negative if it is the whole result
};

// The lines of the rows of consecutive tiles, in the order in which one thread computes them.
struct Ahead {
  const Cache* cache;
  const Batch* batch;
  const Tile *tile, *last;  // the tile whose rows are prefetched; one past the last tile
  int64_t row;              // first row of the next run: contiguous rows of one block
  const char* line;
  int64_t left, step;  // bytes to the end of the run, and from line to line
  int64_t lead;        // bytes from the rows being multiplied to the end of the run
};

INLINE int64_t bytes_of(const Cache& c, int64_t rows) {
  return rows * c.row_stride * bytes_per_element(c);
}

INLINE Ahead ahead_of(const Cache& cache, const Batch& batch, const Tile* tile, const Tile* last) {
  return {&cache, &batch, tile, last, tile->begin, nullptr, 0, 64, 0};
}

// Makes all further prefetches go to one harmless address.
INLINE void stop(Ahead& a) {
  static const char nothing = 0;
  a.line = &nothing;
  a.left = a.lead = INT64_MAX / 2;
  a.step = 0;
}

// Moves to the next run of rows, which ends where their block ends.
static void __attribute__((noinline)) next_run(Ahead& a) {
  if (a.tile < a.last && a.row >= a.tile->end && ++a.tile < a.last) a.row = a.tile->begin;
  if (a.tile >= a.last) return stop(a);
  const Cache& c = *a.cache;
  const int32_t* blocks = a.batch->block_table + a.tile->request * a.batch->table_stride;
  const int64_t offset = a.row % c.block_size, in_block = c.block_size - offset;
  const int64_t wanted = a.tile->end - a.row, rows = in_block < wanted ? in_block : wanted;
  const int64_t block = blocks[a.row / c.block_size];
  a.line = (const char*)c.data + bytes_of(c, offset) +
           block * c.block_stride * bytes_per_element(c);
  a.left = bytes_of(c, rows);
  a.lead += a.left;
  a.row += rows;
}

// Returns the first of the next `lines` lines, `step` apart, for the caller to prefetch.
INLINE const char* take_lines(Ahead& a, int64_t lines) {
  if (a.left <= 0) next_run(a);
  const char* const line = a.line;
  a.line += lines * a.step;
  a.left -= lines * 64;
  return line;
}

// Prefetches a few lines, without a loop: it would take longer than the prefetches.
template <int LINES>
INLINE void ask_for(Ahead& a) {
  const char* const line = take_lines(a, LINES);
#pragma GCC unroll 8
  for (int i = 0; i < LINES; i++) __builtin_prefetch(line + i * a.step, 0, 3);
}

// Prefetches until the lead is ROWS_AHEAD rows.
INLINE void catch_up(Ahead& a) {
  const int64_t wanted = bytes_of(*a.cache, ROWS_AHEAD);
  while (a.lead - (a.left > 0 ? a.left : 0) < wanted) ask_for<8>(a);
}
