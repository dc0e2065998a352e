// What this machine can do at most: the bounds kernel_benchmark.py measures against.
#include <stdint.h>
#include <string.h>
#include <time.h>
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

// Processor time of the thread: what other programs take does not count.
static double now() {
  timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return t.tv_sec + 1e-9 * t.tv_nsec;
}

extern "C" {

// Bytes per second read from a buffer.
double read_rate(const uint64_t* data, int64_t words) {
  const double start = now();
  uint64_t sum[32] = {};
  for (int64_t i = 0; i + 32 <= words; i += 32)
    for (int j = 0; j < 32; j++) sum[j] += data[i + j];
  asm volatile("" ::"r"(sum) : "memory");
  return words * 8 / (now() - start);
}

// Bytes per second read and written by a copy, together.
double copy_rate(void* to, const void* from, int64_t bytes) {
  const double start = now();
  memcpy(to, from, bytes);
  asm volatile("" ::"r"(to) : "memory");
  return 2 * bytes / (now() - start);
}

// Multiplications (each with its addition) per second: of bfloat16 pairs where the machine has
// that instruction, else of floats.
double multiply_rate() {
  constexpr int64_t ROUNDS = 4000000;
  constexpr int SUMS = 16;
#if defined(__AVX512BF16__)
  __m512 sum[SUMS];
  for (auto& s : sum) s = _mm512_setzero_ps();
  __m512bh x = (__m512bh)_mm512_set1_epi32(1);
  const double start = now();
  for (int64_t i = 0; i < ROUNDS; i++) {
    asm volatile("" : "+v"(x));
#pragma GCC unroll 16
    for (int j = 0; j < SUMS; j++) sum[j] = _mm512_dpbf16_ps(sum[j], x, x);
  }
  const double time = now() - start;
  for (auto& s : sum) asm volatile("" : "+v"(s));
  return ROUNDS * SUMS * 32 / time;
#else
#if defined(__AVX512F__)
  constexpr int LANES = 16;
#elif defined(__AVX__)
  constexpr int LANES = 8;
#else
  constexpr int LANES = 4;
#endif
  typedef float vf __attribute__((vector_size(LANES * 4)));
  vf sum[SUMS] = {}, x = vf{} + 0.5f;
  const double start = now();
  for (int64_t i = 0; i < ROUNDS; i++) {
    asm volatile("" : "+m"(x));
#pragma GCC unroll 16
    for (int j = 0; j < SUMS; j++) sum[j] = sum[j] * x + x;
  }
  const double time = now() - start;
  asm volatile("" ::"r"(sum) : "memory");
  return ROUNDS * SUMS * LANES / time;
#endif
}
}
