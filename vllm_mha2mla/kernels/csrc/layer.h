// A layer between its projections in one call, and the cache write as a call of its own.
//
//   rotate and cache the new rows; q_latent[h] = W_UK[h]^T q_nope[h] beside the rotated q_rope;
//   attention; out[h] = W_UV[h] latent[h]                  (arXiv:2405.04434, section 2.1.2)
#pragma once

#include "encode.h"
#include "schedule.h"

// Tokens per task in the steps before and after attention.
constexpr int64_t TOKENS_AT_ONCE = 36;
// Scratch memory up to this size is kept for the next call.
constexpr size_t KEEP_BYTES = 4 << 20;

// (x1 + i x2) e^{i phi}, halves apart (arXiv:2104.09864, eq. 34), rounded to D and stored as T.
template <class D, class T>
INLINE void rotate(const D* x, const float* cos, const float* sin, int64_t half, T* to) {
  for (int64_t j = 0; j < half; j += LANES) {
    const int64_t n = half - j;
    const bool whole = n >= LANES;
    const vf x1 = whole ? load(x + j) : load_some(x + j, n);
    const vf x2 = whole ? load(x + half + j) : load_some(x + half + j, n);
    const vf c = load(cos + j), s = load(sin + j);
    D y1[LANES], y2[LANES];
    store(y1, x1 * c - x2 * s);
    store(y2, x2 * c + x1 * s);
    convert(y1, to + j, whole ? LANES : n);
    convert(y2, to + half + j, whole ? LANES : n);
  }
}

template <class T>
INLINE T* slot_row(const Cache& cache, int64_t slot) {
  return (T*)cache.data + slot / cache.block_size * cache.block_stride +
         slot % cache.block_size * cache.row_stride;
}

template <class D, class T>
static int write_as(const Write& w) {
  for (int64_t t = 0; t < w.tokens; t++)
    if (w.slots[t] >= 0)
      convert((const D*)w.kv_latent + t * w.kv_latent_token, slot_row<T>(w.cache, w.slots[t]),
              w.cache.width);
  return DONE;
}

template <class D>
static int write_pairs(const Write& w) {
  for (int64_t t = 0; t < w.tokens; t++)
    for (int64_t i = 0; i < w.cache.width && w.slots[t] >= 0; i += LANES) {
      const int64_t left = w.cache.width - i, n = left < LANES ? left : LANES;
      bf16 rounded[LANES];
      convert((const D*)w.kv_latent + t * w.kv_latent_token + i, rounded, n);
      store_pairs(w.cache, w.slots[t], i, rounded, n);
    }
  return DONE;
}

template <class D>
static int write_codes(const Write& w) {
  const size_t bytes = (w.cache.width + LANES) * 4;
  Scratch row(LAYER_SCRATCH, bytes, KEEP_BYTES);
  if (!row.data) return OUT_OF_MEMORY;
  for (int64_t t = 0; t < w.tokens; t++) {
    if (w.slots[t] < 0) continue;
    convert((const D*)w.kv_latent + t * w.kv_latent_token, (float*)row.data, w.cache.width);
    encode_row(w.cache, w.slots[t], (const float*)row.data);
  }
  return DONE;
}

template <class D>
static int write_from(const Write& w) {
  if (w.cache.coded) return write_codes<D>(w);
  if (is_paired(w.cache)) return write_pairs<D>(w);
  if (w.cache.dtype == FLOAT32) return write_as<D, float>(w);
  if (w.cache.dtype == FLOAT16) return write_as<D, f16>(w);
  return write_as<D, bf16>(w);
}

static int write(const Write* w) {
  if (w->kv_latent_dtype == FLOAT32) return write_from<float>(*w);
  if (w->kv_latent_dtype == FLOAT16) return write_from<f16>(*w);
  return write_from<bf16>(*w);
}

// Weights of all heads as panels of B: [heads][panels][steps][LANES].
template <bool DOT>
INLINE int64_t head_floats(int64_t inputs, int64_t outputs) {
  return round_up(outputs, LANES) * steps_of<DOT>(inputs);
}

static bool use_dot(int64_t dtype, int64_t cache_dtype) {
  return HAS_DOT && dtype == BFLOAT16 && (cache_dtype == BFLOAT16 || cache_dtype == CODED);
}

static int64_t packed_size(const Weights* w) {
  return w->heads * (use_dot(w->dtype, w->cache_dtype) ? head_floats<true>(w->inputs, w->outputs)
                                                       : head_floats<false>(w->inputs, w->outputs));
}

template <class D, bool DOT>
static void pack_as(const Weights& w) {
  memset(w.packed, 0, packed_size(&w) * 4);
  for (int64_t h = 0; h < w.heads; h++) {
    float* head = w.packed + h * head_floats<DOT>(w.inputs, w.outputs);
    for (int64_t i = 0; i < w.inputs; i++)
      for (int64_t o = 0; o < w.outputs; o++) {
        const D* from = (const D*)w.data + h * w.head + i * w.input + o * w.output;
        const int64_t panel = o / LANES * steps_of<DOT>(w.inputs) * LANES;
        if constexpr (DOT)
          ((D*)head)[2 * (panel + i / 2 * LANES + o % LANES) + i % 2] = *from;
        else
          convert(from, head + panel + i * LANES + o % LANES, 1);
      }
  }
}

static void pack(const Weights* w) {
  if (use_dot(w->dtype, w->cache_dtype)) return pack_as<bf16, true>(*w);
  if (w->dtype == FLOAT32) return pack_as<float, false>(*w);
  if (w->dtype == FLOAT16) return pack_as<f16, false>(*w);
  return pack_as<bf16, false>(*w);
}

struct LayerJob {
  const Layer* layer;
  const Step* step;
  float *cos, *sin;   // [tokens, half], half rounded up to LANES
  void *query, *out;  // what attention reads and writes, as D
  char* workers;
  size_t worker_bytes;
};

// Product of one head's packed weights with its rows, into rows of another type.
template <class From, class To, bool DOT>
static void through_head(const From* from, int64_t from_token, int64_t inputs, const float* weights,
                         To* to, int64_t to_token, int64_t outputs, int64_t tokens, float* scratch) {
  const int64_t steps = steps_of<DOT>(inputs), padded = round_up(outputs, LANES);
  float *a = scratch, *c = scratch + TOKENS_AT_ONCE * steps;
  for (int64_t t = 0; t < tokens; t++) {
    float* row = a + t * steps;
    if constexpr (DOT) {
      row[steps - 1] = 0;
      memcpy(row, from + t * from_token, inputs * sizeof(From));
    } else {
      convert(from + t * from_token, row, inputs);
    }
  }
  Lines none = {};
  gemm<DOT, false>({a, steps, weights, steps * LANES, steps}, {c, padded, 1.0f, nullptr}, tokens,
                   padded / LANES, none);
  for (int64_t t = 0; t < tokens; t++) convert(c + t * padded, to + t * to_token, outputs);
}

INLINE int64_t tokens_of(const Step& s, int64_t chunk) {
  const int64_t left = s.tokens - chunk * TOKENS_AT_ONCE;
  return left < TOKENS_AT_ONCE ? left : TOKENS_AT_ONCE;
}

template <class D, class T>
static void run_rows(void* context, int64_t chunk, int worker) {
  const LayerJob& job = *(const LayerJob*)context;
  const Layer& l = *job.layer;
  const Step& s = *job.step;
  const int64_t half = l.rope / 2, pitch = round_up(half, LANES);
  const bool paired = is_paired(l.cache);
  const Coded* const coded = l.cache.coded;
  for (int64_t i = 0; i < tokens_of(s, chunk); i++) {
    const int64_t t = chunk * TOKENS_AT_ONCE + i;
    angles(s.positions[t], l.inv_freq, half, job.cos + t * pitch, job.sin + t * pitch);
    if (s.slots[t] < 0) continue;
    const D* row = (const D*)s.kv_latent + t * s.kv_latent_token;
    T* to = paired || coded ? (T*)(job.workers + worker * job.worker_bytes)
                            : slot_row<T>(l.cache, s.slots[t]);
    convert(row, to, l.rank);
    rotate(row + l.rank, job.cos + t * pitch, job.sin + t * pitch, half, to + l.rank);
    if (paired) store_pairs(l.cache, s.slots[t], 0, (const bf16*)to, l.cache.width);
    if (coded) {
      float* const y = (float*)to;
      for (int64_t j = 0; j < l.cache.width && s.positions[t] == 0; j++) y[j] -= coded->first_row[j];
      encode_row(l.cache, s.slots[t], y);
    }
  }
}

// D: what attention reads and writes; the layer's own dtype.
template <class D, bool DOT>
static void run_absorb(void* context, int64_t task, int worker) {
  const LayerJob& job = *(const LayerJob*)context;
  const Layer& l = *job.layer;
  const Step& s = *job.step;
  const int64_t chunk = task / l.heads, h = task % l.heads, count = tokens_of(s, chunk);
  const int64_t first = chunk * TOKENS_AT_ONCE, width = l.rank + l.rope;
  const int64_t half = l.rope / 2, pitch = round_up(half, LANES);
  const D* from = (const D*)s.query + first * s.query_token + h * (l.nope + l.rope);
  D* to = (D*)job.query + (first * l.heads + h) * width;
  through_head<D, D, DOT>(from, s.query_token, l.nope, l.w_uk + h * head_floats<DOT>(l.nope, l.rank),
                          to, l.heads * width, l.rank, count,
                          (float*)(job.workers + worker * job.worker_bytes));
  for (int64_t t = 0; t < count; t++)
    rotate(from + t * s.query_token + l.nope, job.cos + (first + t) * pitch,
           job.sin + (first + t) * pitch, half, to + t * l.heads * width + l.rank);
}

template <class D, bool DOT>
static void run_values(void* context, int64_t task, int worker) {
  const LayerJob& job = *(const LayerJob*)context;
  const Layer& l = *job.layer;
  const Step& s = *job.step;
  const int64_t chunk = task / l.heads, h = task % l.heads;
  const int64_t first = chunk * TOKENS_AT_ONCE;
  through_head<D, D, DOT>((const D*)job.out + (first * l.heads + h) * l.rank, l.heads * l.rank,
                          l.rank, l.w_uv + h * head_floats<DOT>(l.rank, l.v),
                          (D*)s.out + first * s.out_token + h * l.v, s.out_token, l.v,
                          tokens_of(s, chunk), (float*)(job.workers + worker * job.worker_bytes));
}

template <class D, bool DOT>
static int layer_as(const Layer& l, const Step& s) {
  if (s.tokens == 0) return DONE;
  LayerJob job = {};
  job.layer = &l;
  job.step = &s;
  const int64_t pitch = round_up(l.rope / 2, LANES), width = l.rank + l.rope;
  const size_t angle_bytes = round_up(s.tokens * pitch * 4, 64);
  const size_t query_bytes = round_up(s.tokens * l.heads * width * sizeof(D), 64);
  const size_t out_bytes = round_up(s.tokens * l.heads * l.rank * sizeof(D), 64);
  const int64_t longest = l.nope > l.rank ? l.nope : l.rank, widest = l.rank > l.v ? l.rank : l.v;
  // A worker needs room for one head's product, or for one row before it is put into pairs or coded.
  const int64_t product_bytes =
      TOKENS_AT_ONCE * (steps_of<DOT>(longest) + round_up(widest, LANES)) * 4;
  const int64_t row_bytes = width * sizeof(float);
  job.worker_bytes = round_up(product_bytes > row_bytes ? product_bytes : row_bytes, 64);
  Scratch scratch(LAYER_SCRATCH,
                  2 * angle_bytes + query_bytes + out_bytes + max_threads() * job.worker_bytes,
                  KEEP_BYTES);
  if (!scratch.data) return OUT_OF_MEMORY;
  job.cos = (float*)scratch.data;
  job.sin = (float*)(scratch.data + angle_bytes);
  job.query = scratch.data + 2 * angle_bytes;
  job.out = scratch.data + 2 * angle_bytes + query_bytes;
  job.workers = (char*)job.out + out_bytes;

  const int64_t chunks = (s.tokens + TOKENS_AT_ONCE - 1) / TOKENS_AT_ONCE;
  TaskBody rows = run_rows<D, bf16>;
  if (l.cache.dtype == FLOAT32 || l.cache.coded) rows = run_rows<D, float>;
  if (l.cache.dtype == FLOAT16) rows = run_rows<D, f16>;
  parallel_for(chunks, chunks > 1, rows, &job);
  const bool worth_threads = s.tokens * l.heads * l.rank * l.nope > WORTH_THREADS;
  parallel_for(chunks * l.heads, worth_threads, run_absorb<D, DOT>, &job);
  Attention a = {};
  a.cache = l.cache;
  a.batch = s.batch;
  a.query = job.query;
  a.out = job.out;
  a.query_dtype = a.out_dtype = l.dtype;
  a.query_token = l.heads * width;
  a.query_head = width;
  a.out_token = l.heads * l.rank;
  a.out_head = l.rank;
  a.heads = l.heads;
  a.rank = l.rank;
  a.scale = l.scale;
  if (attend(&a) != DONE) return OUT_OF_MEMORY;
  parallel_for(chunks * l.heads, worth_threads, run_values<D, DOT>, &job);
  return DONE;
}

static int layer(const Layer* l, const Step* s) {
  if (use_dot(l->dtype, l->cache.dtype)) return layer_as<bf16, HAS_DOT>(*l, *s);
  if (l->dtype == FLOAT32) return layer_as<float, false>(*l, *s);
  if (l->dtype == FLOAT16) return layer_as<f16, false>(*l, *s);
  return layer_as<bf16, false>(*l, *s);
}
