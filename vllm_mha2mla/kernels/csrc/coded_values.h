// Weighted sums of coded rows, 16 columns at a time: read while the ones before are multiplied.
#pragma once

#include "coded_buffers.h"
#include "limbs.h"

#if defined(__AVX512VBMI__) && defined(__AVX512VNNI__)

// Turns probabilities into the weights of levels, in limbs; returns the weights' step.
INLINE float split_probabilities(const CodedProgress& c, int64_t m, int64_t count) {
  float* const row = c.p.b.scores + m * CODED_STEP;
  const int64_t columns = round_up(count, LANES), blocks = (count + VALUE_ROWS - 1) / VALUE_ROWS;
  vf largest = {};
  for (int64_t n = 0; n < columns; n += LANES) {
    const vf weight = load(row + n) * load(c.b.scales[LATENT] + n);
    store(row + n, weight);
    largest = larger(weight, largest);
  }
  for (int64_t n = columns; n < blocks * VALUE_ROWS; n += LANES) store(row + n, vf{});
  const float top = horizontal_max(largest), scale = top > 1e-30f ? LARGEST_UNSIGNED / top : 0;
  uint8_t* to = c.b.weights + m / c.s.height * (CODED_STEP / VALUE_ROWS) * 2 * TILE_BYTES +
                m % c.s.height * 64;
  for (int64_t block = 0; block < blocks; block++, to += 2 * TILE_BYTES)
    split_weights(row + block * VALUE_ROWS, scale, to, to + TILE_BYTES);
  return top / LARGEST_UNSIGNED;
}

// The next 16 columns' values, read chunk by chunk of VALUE_ROWS.
struct NextValues {
  const CodedProgress& c;
  const uint8_t* const* groups;
  int64_t unit, at;
  uint8_t* to;

  void read(int64_t chunk) {
    const int64_t* const bits = c.k.unit_bits + unit;
    constexpr int64_t count = VALUE_ROWS / GROUP_ROWS;
    for (int64_t i = 0, begin = at; i < 2 && unit + i < c.k.latent_units; i++) {
      value_units(c.k, groups + chunk * count, count, bits[i], begin,
                  to + chunk * TILE_BYTES + 32 * i);
      begin += bits[i] * GROUP_ROWS;
    }
  }
  void move_on(uint8_t* where) {
    for (int64_t i = 0; i < 2 && unit < c.k.latent_units; i++)
      at += c.k.unit_bits[unit++] * GROUP_ROWS;
    to = where;
  }
};

// Adds the values of `count` rows, weighted, to the output.
static void weigh_codes(const CodedProgress& c, int64_t count,
                        const uint8_t* const groups[STEP_GROUPS]) {
  const Progress& p = c.p;
  constexpr int64_t most = CODED_STEP / VALUE_ROWS;
  const int64_t blocks = (count + VALUE_ROWS - 1) / VALUE_ROWS;
  static const int32_t none[2] = {};
  NextValues next = {c, groups, 0, 0, c.b.values};
  for (int64_t block = 0; block < blocks; block++) next.read(block);
  int64_t done = 0;
  auto add = [&] {
    const int64_t first = done % c.s.tiles * c.s.height;
    for (int64_t m = first; m < first + c.s.height && m < p.rows; m++) {
      float* const out = p.b.out + m * p.s.out_stride + done / c.s.tiles * LANES;
      store(out, load(out) + sum_of(c.b.products + done % 2 * 2 * C_LIMB, m - first, none) *
                                 p.b.carry[m]);
    }
    done++;
  };
  for (int64_t unit = 0, product = 0; unit < c.k.latent_units; unit += 2) {
    const uint8_t* const values = next.to;
    next.move_on(c.b.values + (unit / 2 + 1) % 2 * most * TILE_BYTES);
    for (int64_t tile = 0; tile < c.s.tiles; tile++, product++) {
      const int64_t left = p.rows - tile * c.s.height, rows = left < c.s.height ? left : c.s.height;
      multiply<false>(c.b.weights + tile * most * 2 * TILE_BYTES, values, blocks, rows,
                      c.b.products + product % 2 * 2 * C_LIMB,
                      [&](int64_t block) {
                        if (tile == 0) next.read(block);
                      });
      if (product) add();
    }
  }
  add();
}

#endif
