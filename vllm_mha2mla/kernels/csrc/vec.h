// Vectors of LANES floats, and conversions from and to the dtypes of caches.
//
// GCC's and Clang's vector extension compiles to whatever the variant's flags allow; intrinsics
// appear only where it has no word for an instruction.
#pragma once

#include <stdint.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX2__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif

#define INLINE static inline __attribute__((always_inline))

typedef float vf __attribute__((vector_size(LANES * 4)));
typedef int32_t vi __attribute__((vector_size(LANES * 4)));
typedef uint32_t vu __attribute__((vector_size(LANES * 4)));
typedef uint16_t vh __attribute__((vector_size(LANES * 2)));
typedef vf vf_unaligned __attribute__((aligned(4), may_alias));
typedef vh vh_unaligned __attribute__((aligned(2), may_alias));

struct bf16 { uint16_t bits; };
struct f16 { uint16_t bits; };

INLINE vf splat(float x) { return x - vf{}; }
INLINE vf load(const float* p) { return *reinterpret_cast<const vf_unaligned*>(p); }
INLINE void store(float* p, vf x) { *reinterpret_cast<vf_unaligned*>(p) = x; }

// The second operand where either is a NaN, so that a NaN in the first is passed over.
INLINE vf larger(vf x, vf y) {
#if defined(__AVX512F__)
  return (vf)_mm512_max_ps((__m512)x, (__m512)y);
#else
  return x > y ? x : y;
#endif
}

INLINE float horizontal_max(vf x) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps((__m512)x);
#else
  float part[LANES];
  store(part, x);
  for (int half = LANES / 2; half; half /= 2)
    for (int i = 0; i < half; i++) part[i] = part[i] > part[i + half] ? part[i] : part[i + half];
  return part[0];
#endif
}
INLINE bool any_above(vf x, float y) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask((__m512)x, (__m512)splat(y), _CMP_GT_OQ);
#elif defined(__AVX2__)
  return _mm256_movemask_ps(_mm256_cmp_ps((__m256)x, (__m256)splat(y), _CMP_GT_OQ));
#else
  return horizontal_max(x) > y;
#endif
}
INLINE float horizontal_sum(vf x) {
  float part[LANES];
  store(part, x);
  for (int half = LANES / 2; half; half /= 2)
    for (int i = 0; i < half; i++) part[i] += part[i + half];
  return part[0];
}

// Highest power first, by Horner's rule.
template <int N>
INLINE vf polynomial(const float (&coefficients)[N], vf x) {
  vf p = splat(coefficients[0]);
#pragma GCC unroll 8
  for (int i = 1; i < N; i++) p = p * x + coefficients[i];
  return p;
}

#if defined(__AVX512F__)
// 2^x for x <= 0, with a polynomial for 2^r, 0 <= r < 1.
template <int N>
INLINE vf exp2_by(const float (&coefficients)[N], vf x) {
  // x - floor(x), which is 0 for minus infinity; scalef takes the floor by itself.
  const vf r = (vf)_mm512_reduce_ps((__m512)x, 9);
  return (vf)_mm512_scalef_ps((__m512)polynomial(coefficients, r), (__m512)x);
}

// The same for what is rounded to bfloat16 next: the minimax polynomial of degree 3, whose relative
// error of 7.5e-5 is a twenty-sixth of that rounding.
INLINE vf exp2_to_bf16(vf x) {
  constexpr float coefficients[] = {0.07802452264047956f, 0.22606715542748312f,
                                    0.6958335404947528f, 0.9999252185627154f};
  return exp2_by(coefficients, x);
}
#endif

// 2^x for x <= 0: relative error below 3e-7 down to 2^-126, below that zero; NaN stays NaN.
// The polynomials are the minimax ones of degree 5 (relative error 7.5e-8).
INLINE vf exp2(vf x) {
#if defined(__AVX512F__)
  constexpr float coefficients[] = {0.0018775766751768768f, 0.00898934009051858f,
                                    0.05582631805328927f, 0.24015361704437105f,
                                    0.6931530732001705f, 0.9999999250635262f};
  return exp2_by(coefficients, x);
#else
  constexpr float coefficients[] = {0.001327647204921064f, 0.009675541384749034f,
                                    0.05550713273760583f, 0.2402211972291316f,
                                    0.6931469670643255f, 1.0000000716548714f};
  // Adding 1.5 * 2^23 rounds to an integer, and leaves it in the low bits.
  const vf magic = splat(12582912.0f);
  const vf clamped = x < -126.0f ? splat(-126.0f) : x;
  const vf shifted = clamped + magic;
  const vf p = polynomial(coefficients, clamped - (shifted - magic));
  const vi exponent = ((vi)shifted - 0x4b400000) << 23;
  const vf scaled = (vf)((vi)p + exponent);
  const vf result = x < -126.0f ? vf{} : scaled;
  return x != x ? x : result;
#endif
}

INLINE vf widen(vh bits, bf16) { return (vf)(__builtin_convertvector(bits, vu) << 16); }
INLINE vf widen(vh bits, f16) {
#if defined(__AVX512F__)
  return (vf)_mm512_cvtph_ps((__m256i)bits);
#elif defined(__F16C__)
  return (vf)_mm256_cvtph_ps((__m128i)bits);
#else
  // Exponents of the two formats differ by 112; subnormals come out right, infinities and NaN
  // (all ones) are set by hand.
  const vu wide = __builtin_convertvector(bits, vu);
  const vu magnitude = (wide & 0x7fff) << 13;
  const vf scaled = (vf)magnitude * 5.192296858534828e33f;
  const vu special = (vu)((wide & 0x7c00) == 0x7c00);
  return (vf)(((vu)scaled & ~special) | ((magnitude | 0x7f800000) & special) |
              (wide & 0x8000) << 16);
#endif
}

INLINE vh narrow(vf x, bf16) {
  const vu bits = (vu)x;
  const vu rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const vu not_a_number = (vu)(x != x);
  return __builtin_convertvector((rounded & ~not_a_number) | (not_a_number & 0x7fc0), vh);
}
INLINE vh narrow(vf x, f16) {
#if defined(__AVX512F__)
  return (vh)_mm512_cvtps_ph((__m512)x, 0);
#elif defined(__F16C__)
  return (vh)_mm256_cvtps_ph((__m256)x, 0);
#else
  const vu sign = ((vu)x >> 16) & 0x8000;
  const vu magnitude = (vu)x & 0x7fffffff;
  // Normal numbers: rounded to nearest even in the bits that go. What overflows is 65520 and up.
  const vu normal = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // Subnormal ones: the addition rounds, and leaves the bits in place.
  const vu subnormal = (vu)((vf)magnitude + 0.5f) - 0x3f000000;
  const vu is_subnormal = (vu)(magnitude < 0x38800000);
  const vu is_infinite = (vu)(magnitude >= 0x477ff000);
  const vu is_nan = (vu)(magnitude > 0x7f800000);
  vu bits = (subnormal & is_subnormal) | (normal & ~is_subnormal);
  bits = (bits & ~is_infinite) | (is_infinite & 0x7c00) | (is_nan & 0x200);
  return __builtin_convertvector(bits | sign, vh);
#endif
}

INLINE vf load(const bf16* p) { return widen(*reinterpret_cast<const vh_unaligned*>(p), bf16()); }
INLINE vf load(const f16* p) { return widen(*reinterpret_cast<const vh_unaligned*>(p), f16()); }
INLINE void store(bf16* p, vf x) { *reinterpret_cast<vh_unaligned*>(p) = narrow(x, bf16()); }
INLINE void store(f16* p, vf x) { *reinterpret_cast<vh_unaligned*>(p) = narrow(x, f16()); }

typedef int8_t vb __attribute__((vector_size(LANES)));
typedef vb vb_unaligned __attribute__((aligned(1), may_alias));
INLINE vf load(const int8_t* p) {
  return __builtin_convertvector(*reinterpret_cast<const vb_unaligned*>(p), vf);
}

// The first n numbers, 0 < n < LANES; zeros behind them.
template <class T>
INLINE vf load_some(const T* p, int64_t n) {
  T some[LANES] = {};
  memcpy(some, p, n * sizeof(T));
  return load(some);
}
template <class T>
INLINE void store_some(T* p, vf x, int64_t n) {
  T some[LANES];
  store(some, x);
  memcpy(p, some, n * sizeof(T));
}

// to[i] = from[i] for i < n.
template <class From, class To>
INLINE void convert(const From* from, To* to, int64_t n) {
  int64_t i = 0;
  for (; i + LANES <= n; i += LANES) store(to + i, load(from + i));
  if (i < n) store_some(to + i, load_some(from + i, n - i), n - i);
}
INLINE void convert(const float* from, float* to, int64_t n) { memcpy(to, from, n * 4); }
INLINE void convert(const bf16* from, bf16* to, int64_t n) { memcpy(to, from, n * 2); }
INLINE void convert(const f16* from, f16* to, int64_t n) { memcpy(to, from, n * 2); }

INLINE int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }
