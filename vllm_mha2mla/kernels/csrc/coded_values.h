// Weighted sums of coded rows, 32 columns at a time: the next are read while the ones before are
// multiplied.
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
  uint8_t* to = c.b.weights + m / c.s.height * STEP_BLOCKS * 2 * TILE_BYTES +
                m % c.s.height * 64;
  for (int64_t block = 0; block < blocks; block++, to += 2 * TILE_BYTES)
    split_weights(row + block * VALUE_ROWS, scale, to, to + TILE_BYTES);
  return top / LARGEST_UNSIGNED;
}

// The values of a step, read ahead of their products: 32 columns, VALUE_ROWS rows at a time.
struct Values {
  const CodedProgress& c;
  const uint8_t* const* groups;
  int64_t blocks;
  Pairs slots;
  int64_t unit = 0, at = 0, block = 0;  // to be read next; `at`: of the unit in a group

  // Reads the next block, if there is one.
  void read() {
    if (unit >= c.k.latent_units) return;
    constexpr int64_t count = VALUE_ROWS / GROUP_ROWS;
    uint8_t* const to = (uint8_t*)slots.next();
    int64_t begin = at;
    for (int64_t i = 0; i < 4 && unit + i < c.k.latent_units; i++) {
      const int64_t bits = c.k.unit_bits[unit + i];
      value_units(c.k, groups + block * count, count, bits, begin,
                  to + i / 2 * slots.second + i % 2 * 32);
      begin += bits * GROUP_ROWS;
    }
    if (++block == blocks) block = 0, unit += 4, at = begin;
  }
};

// Adds the values of `count` rows, weighted, to the output.
static void weigh_codes(const CodedProgress& c, int64_t count,
                        const uint8_t* const groups[STEP_GROUPS]) {
  const Progress& p = c.p;
  const int64_t blocks = (count + VALUE_ROWS - 1) / VALUE_ROWS, panels = p.s.widths.value_panels;
  Pairs own = slots_of(c.b.values, c.s.value_slots);
  Values values = {c, groups, blocks, own};
  for (int64_t i = 0; i < c.s.values_ahead; i++) values.read();
  int64_t done = 0;
  auto add = [&] {
    const int64_t first = done % c.s.tiles * c.s.height, panel = done / c.s.tiles * 2;
    const int32_t* const products = c.b.products + done % 2 * C_PRODUCT;
    for (int64_t m = first; m < first + c.s.height && m < p.rows; m++) {
      float* const out = p.b.out + m * p.s.out_stride + panel * LANES;
      for (int64_t i = 0; i < 2 && panel + i < panels; i++)
        store(out + i * LANES,
              load(out + i * LANES) + sum_of(products, i, m - first) * p.b.carry[m]);
    }
    done++;
  };
  for (int64_t panel = 0, product = 0; panel < panels; panel += 2) {
    const Pairs of_panel = own;
    for (int64_t tile = 0; tile < c.s.tiles; tile++, product++) {
      own = of_panel;
      const int64_t left = p.rows - tile * c.s.height, rows = left < c.s.height ? left : c.s.height;
      multiply<false>(c.b.weights + tile * STEP_BLOCKS * 2 * TILE_BYTES, own, blocks, rows, nullptr,
                      0, c.b.products + product % 2 * C_PRODUCT, [&](int64_t) {
                        if (tile == 0) values.read();
                      });
      if (product) add();
    }
  }
  add();
}

#endif
