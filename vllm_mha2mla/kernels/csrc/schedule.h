// Splits a batch into tiles that keep all threads busy, and puts split contexts together again.
#pragma once

#include <stdlib.h>

#include "parallel.h"
#include "tile.h"

// Queries times heads of one tile, which share each packed block of rows.
constexpr int64_t TILE_TARGET = 144;
// Contexts are split until each thread has this many tiles, but not into shorter pieces than this.
constexpr int64_t TILES_PER_THREAD = 3, SHORTEST_PIECE = 4 * BLOCK_ROWS;
// With fewer multiplications than this, one thread computes: waking others would take longer.
constexpr int64_t WORTH_THREADS = 1 << 17;

// Queries whose context was split into pieces.
struct Merge {
  int64_t first, queries;  // the queries, counted through the batch
  int64_t partial, pieces, piece_floats;
};

struct Plan {
  int64_t tiles, merges, partial_floats, largest, cost;
};

// Goes through the batch; called once to count (null pointers) and once to fill.
template <class S>
static Plan plan(const Attention& a, const S& s, int64_t piece_cost, Tile* tiles, Merge* merges) {
  Plan p = {};
  const int64_t at_once = a.heads < TILE_TARGET ? TILE_TARGET / a.heads : 1;
  for (int64_t r = 0; r < a.batch.requests; r++) {
    const int64_t last = a.batch.query_start[r + 1], length = a.batch.seq_lens[r];
    for (int64_t first = a.batch.query_start[r]; first < last; first += at_once) {
      const int64_t queries = last - first < at_once ? last - first : at_once;
      const int64_t end = length - (last - first - queries);
      const int64_t rows = queries * a.heads;
      int64_t pieces = rows * end / piece_cost, longest = end / SHORTEST_PIECE;
      pieces = pieces < longest ? pieces : longest;
      pieces = pieces > 1 ? pieces : 1;
      const int64_t piece_floats = rows * (s.out_stride + 2);
      const int64_t step = round_up((end + pieces - 1) / pieces, s.step_rows);
      pieces = (end + step - 1) / step;
      if (pieces > 1) {
        if (merges) merges[p.merges] = {first, queries, p.partial_floats, pieces, piece_floats};
        p.merges++;
      }
      for (int64_t i = 0; i < pieces; i++) {
        const int64_t stop = (i + 1) * step < end ? (i + 1) * step : end;
        const int64_t partial = pieces > 1 ? p.partial_floats + i * piece_floats : -1;
        if (tiles) tiles[p.tiles] = {r, first, queries, i * step, stop, partial};
        p.tiles++;
      }
      if (pieces > 1) p.partial_floats += pieces * piece_floats;
      p.largest = rows > p.largest ? rows : p.largest;
      p.cost += rows * end;
    }
  }
  return p;
}

struct AttendJob {
  const Attention* attention;
  Shape shape;
  const Tile* tiles;
  const Merge* merges;
  float* partials;
  char* workers;
  size_t worker_bytes;
  int64_t largest;
  Ahead* ahead;  // null if several threads take tiles, as the next tile of each is not known
};

template <class O>
INLINE void write_output(const Attention& a, int64_t query, int64_t head, const float* from,
                         float factor) {
  O* to = (O*)a.out + query * a.out_token + head * a.out_head;
  write_row(from, factor, to, a.rank);
}

INLINE void write_any(const Attention& a, int64_t query, int64_t head, const float* from,
                      float sum) {
  const float factor = 1.0f / sum;
  if (a.out_dtype == FLOAT32) write_output<float>(a, query, head, from, factor);
  if (a.out_dtype == BFLOAT16) write_output<bf16>(a, query, head, from, factor);
  if (a.out_dtype == FLOAT16) write_output<f16>(a, query, head, from, factor);
}

template <class T, bool DOT>
static void run_tile(void* context, int64_t task, int worker) {
  const AttendJob& job = *(const AttendJob*)context;
  const Attention& a = *job.attention;
  const Shape& s = job.shape;
  const Tile& t = job.tiles[task];
  TileBuffers b;
  char* const scratch = job.workers + worker * job.worker_bytes;
  const size_t used = lay_out<T>(s, job.largest, a.cache.coded, scratch, &b);
  Ahead own = ahead_of(a.cache, a.batch, &t, &t + 1);
  attend_tile<T, DOT>(a, s, t, job.ahead ? *job.ahead : own, b, scratch + used);
  const int64_t rows = t.queries * s.heads;
  for (int64_t m = 0; m < rows; m++) {
    const float sum = horizontal_sum(load(b.sums + m * LANES));
    const float* out = b.out + m * s.out_stride;
    if (t.partial < 0) {
      write_any(a, t.first + m / s.heads, m % s.heads, out, sum);
      continue;
    }
    float* to = job.partials + t.partial + m * (s.out_stride + 2);
    to[0] = b.maxima[m];
    to[1] = sum;
    memcpy(to + 2, out, s.out_stride * 4);
  }
}

// Merges the pieces of one tile, each weighted by the exponential of its maximum.
static void run_merge(void* context, int64_t task, int) {
  const AttendJob& job = *(const AttendJob*)context;
  const Attention& a = *job.attention;
  const Shape& s = job.shape;
  const Merge& merge = job.merges[task];
  for (int64_t m = 0; m < merge.queries * s.heads; m++) {
    float* first = job.partials + merge.partial + m * (s.out_stride + 2);
    float largest = -FLT_MAX, sum = 0;
    for (int64_t i = 0; i < merge.pieces; i++) {
      const float maximum = first[i * merge.piece_floats];
      largest = maximum > largest ? maximum : largest;
    }
    // The sum is collected in the first piece.
    for (int64_t i = 0; i < merge.pieces; i++) {
      float* piece = first + i * merge.piece_floats;
      const float factor = exp2(splat(piece[0] - largest))[0];
      sum += piece[1] * factor;
      for (int64_t j = 2; j < s.out_stride + 2; j += LANES) {
        const vf x = load(piece + j) * factor;
        store(first + j, i ? load(first + j) + x : x);
      }
    }
    write_any(a, merge.first + m / s.heads, m % s.heads, first + 2, sum);
  }
}

template <class T, bool DOT>
static int attend_as(const Attention& a) {
  const Shape s = shape_of<DOT>(a);
  const int64_t threads = max_threads();
  Plan p = plan(a, s, INT64_MAX, nullptr, nullptr);
  if (p.tiles == 0) return DONE;
  int64_t piece_cost = INT64_MAX;
  if (threads > 1) piece_cost = p.cost / (threads * TILES_PER_THREAD) + 1;
  p = plan(a, s, piece_cost, nullptr, nullptr);

  AttendJob job = {};
  job.attention = &a;
  job.shape = s;
  job.largest = p.largest;
  job.worker_bytes = worker_bytes<T, DOT>(a, s, p.largest);
  const size_t tile_bytes = round_up(p.tiles * sizeof(Tile), 64);
  const size_t merge_bytes = round_up(p.merges * sizeof(Merge), 64);
  const size_t partial_bytes = round_up(p.partial_floats * 4, 64);
  const size_t total = tile_bytes + merge_bytes + partial_bytes + threads * job.worker_bytes;
  Scratch scratch(ATTENTION_SCRATCH, total, SIZE_MAX);
  if (!scratch.data) return OUT_OF_MEMORY;
  Tile* tiles = (Tile*)scratch.data;
  Merge* merges = (Merge*)(scratch.data + tile_bytes);
  plan(a, s, piece_cost, tiles, merges);
  job.tiles = tiles;
  Ahead ahead = ahead_of(a.cache, a.batch, tiles, tiles + p.tiles);
  if (threads == 1) job.ahead = &ahead;
  job.merges = merges;
  job.partials = (float*)(scratch.data + tile_bytes + merge_bytes);
  job.workers = scratch.data + tile_bytes + merge_bytes + partial_bytes;
  const bool worth_threads = p.cost * (a.cache.width + a.rank) > WORTH_THREADS;
  parallel_for(p.tiles, worth_threads, run_tile<T, DOT>, &job);
  if (p.merges) parallel_for(p.merges, worth_threads, run_merge, &job);
  return DONE;
}

static int attend(const Attention* a) {
  const bool halves = a->cache.dtype == BFLOAT16 || a->cache.coded;
  if (HAS_DOT && halves && a->query_dtype == BFLOAT16) return attend_as<bf16, HAS_DOT>(*a);
  if (a->cache.dtype == FLOAT32 || a->cache.coded) return attend_as<float, false>(*a);
  if (a->cache.dtype == FLOAT16) return attend_as<f16, false>(*a);
  return attend_as<bf16, false>(*a);
}
