// The cache lines of rows to come, asked for a few at a time beside the products.
//
// A cache is spread over memory block by block, and the hardware stops at the end of each; memory
// has to work all the time, not in bursts between the products.
#pragma once

#include "kernel.h"
#include "vec.h"

// Rows from where products are to where lines are asked for: what L1 holds beside the sums.
constexpr int64_t ROWS_AHEAD = 64;

struct Range {
  int64_t request, begin, end;  // cache rows
};

struct Ahead {
  const char* line;
  int64_t left, step;  // bytes: to the end of the run, from line to line
  const Cache* cache;
  const Batch* batch;
  Range now, next;  // still to come, and what follows
};

// Goes on to the rows' next run, which ends with their block.
static void __attribute__((noinline)) next_run(Ahead& a) {
  if (a.now.begin >= a.now.end) {
    a.now = a.next;
    a.next.end = 0;
  }
  if (a.now.begin >= a.now.end) {
    static const char nothing = 0;
    a.line = &nothing;
    a.left = INT64_MAX;
    a.step = 0;
    return;
  }
  const Cache& c = *a.cache;
  const int64_t size = c.dtype == FLOAT32 ? 4 : 2;
  const int32_t* blocks = a.batch->block_table + a.now.request * a.batch->table_stride;
  const int64_t offset = a.now.begin % c.block_size, in_block = c.block_size - offset;
  const int64_t wanted = a.now.end - a.now.begin, rows = in_block < wanted ? in_block : wanted;
  a.line = (const char*)c.data +
           (blocks[a.now.begin / c.block_size] * c.block_stride + offset * c.row_stride) * size;
  a.left = rows * c.row_stride * size;
  a.step = 64;
  a.now.begin += rows;
}

// The first of so many lines, `step` apart, for the caller to ask for.
INLINE const char* take_lines(Ahead& a, int64_t lines) {
  if (a.left <= 0) next_run(a);
  const char* const line = a.line;
  a.line += lines * a.step;
  a.left -= lines * 64;
  return line;
}

INLINE void ask_for(Ahead& a, int64_t lines) {
  const char* const line = take_lines(a, lines);
  for (int64_t i = 0; i < lines; i++) __builtin_prefetch(line + i * a.step, 0, 3);
}
