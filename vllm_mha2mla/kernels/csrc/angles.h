// Angles of the rotary embedding.
#pragma once

#include "vec.h"

// Cosines and sines of float32 angles, whose whole turns are taken off in double precision.
INLINE void angles(int64_t position, const float* inv_freq, int64_t n, float* cos, float* sin) {
  for (int64_t j = 0; j < n; j++) {
    const double angle = (float)position * inv_freq[j];
    // Adding 1.5 * 2^52 rounds to an integer: which quarter of a turn is nearest.
    const double quarters = (angle * 0.6366197723675814 + 6755399441055744.0) - 6755399441055744.0;
    const double r = (angle - quarters * 1.5707963267948966) - quarters * 6.123233995736766e-17;
    const double r2 = r * r;
    // Taylor's polynomials: beyond float32's precision for |r| <= pi / 4.
    const double s = r * (1 + r2 * (-1.0 / 6 + r2 * (1.0 / 120 + r2 * (-1.0 / 5040 + r2 * (1.0 / 362880)))));
    const double c = 1 + r2 * (-1.0 / 2 + r2 * (1.0 / 24 + r2 * (-1.0 / 720 + r2 * (1.0 / 40320 - r2 * (1.0 / 3628800)))));
    const int64_t quarter = (int64_t)quarters & 3;
    const double x = quarter & 1 ? s : c, y = quarter & 1 ? c : s;
    cos[j] = (float)(quarter == 1 || quarter == 2 ? -x : x);
    sin[j] = (float)(quarter & 2 ? -y : y);
  }
}
