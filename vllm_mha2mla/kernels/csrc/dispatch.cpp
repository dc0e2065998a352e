// The library's entry points: picks the variant for this CPU; threads; scratch memory.
#include <stdlib.h>
#include <string.h>

#include "kernel.h"
#include "parallel.h"

#ifdef WITH_X86
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

// The GNU OpenMP interface, without linking to any runtime: resolved when the library is loaded,
// from the runtime torch brought along (libgomp, or a preloaded libiomp5, which has it too). One
// pool for both, sized by torch.set_num_threads. Where there is none, one thread computes.
extern "C" {
void GOMP_parallel(void (*)(void*), void*, unsigned, unsigned) __attribute__((weak));
int omp_get_max_threads() __attribute__((weak));
}

int max_threads() {
  if (!GOMP_parallel || !omp_get_max_threads) return 1;
  return omp_get_max_threads();
}

namespace {

struct Job {
  int64_t tasks, next;
  int workers;
  TaskBody body;
  void* context;
};

void run(void* argument) {
  Job* job = static_cast<Job*>(argument);
  const int worker = __atomic_fetch_add(&job->workers, 1, __ATOMIC_RELAXED);
  for (;;) {
    const int64_t task = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED);
    if (task >= job->tasks) return;
    job->body(job->context, task, worker);
  }
}

struct Kept {
  char* data = nullptr;
  size_t bytes = 0;
  ~Kept() { free(data); }
};
thread_local Kept kept[SCRATCH_SLOTS];

char* aligned(size_t bytes) {
  void* data = nullptr;
  return posix_memalign(&data, 64, bytes) ? nullptr : static_cast<char*>(data);
}

}  // namespace

void parallel_for(int64_t tasks, bool worth_threads, TaskBody body, void* context) {
  Job job = {tasks, 0, 0, body, context};
  int64_t threads = max_threads();
  if (threads > tasks) threads = tasks;
  if (threads > 1 && worth_threads) {
    GOMP_parallel(run, &job, static_cast<unsigned>(threads), 0);
  } else {
    run(&job);
  }
}

Scratch::Scratch(ScratchSlot slot, size_t bytes, size_t keep) : owned(bytes > keep) {
  if (owned) {
    data = aligned(bytes);
    return;
  }
  Kept& own = kept[slot];
  if (own.bytes < bytes) {
    free(own.data);
    own.data = aligned(bytes);
    own.bytes = own.data ? bytes : 0;
  }
  data = own.data;
}

Scratch::~Scratch() {
  if (owned) free(data);
}

extern const Variant variant_portable;
#ifdef WITH_X86
// Weak, as an older compiler builds no variant whose flags it does not know.
#define WEAK __attribute__((weak))
extern const Variant variant_avx2 WEAK, variant_avx512 WEAK, variant_avx512bf16 WEAK,
    variant_amx WEAK;

namespace {
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2") &&
         __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
bool has_avx512bf16() {
  return has_avx512() && __builtin_cpu_supports("avx512bf16") &&
         __builtin_cpu_supports("avx512vbmi") && __builtin_cpu_supports("avx512vnni");
}
// The kernel gives its large registers to a process that asks for them.
bool may_use_tiles() {
#if defined(__linux__)
  constexpr int REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;  // arch_prctl(2)
  return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
#else
  return false;
#endif
}
bool has_amx() {
  unsigned a, b, c, d;
  if (!has_avx512bf16() || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  const bool tiles = d >> 24 & 1, int8 = d >> 25 & 1;
  return tiles && int8 && may_use_tiles();
}
}  // namespace
#endif

#pragma GCC visibility push(default)
extern "C" {

// The variant of this index, best first, or null past the last this CPU can run.
const Variant* mha2mla_variant(int index) {
  const Variant* found[5];
  int count = 0;
#ifdef WITH_X86
  __builtin_cpu_init();
  if (&variant_amx && has_amx()) found[count++] = &variant_amx;
  if (&variant_avx512bf16 && has_avx512bf16()) found[count++] = &variant_avx512bf16;
  if (&variant_avx512 && has_avx512()) found[count++] = &variant_avx512;
  if (&variant_avx2 && has_avx2()) found[count++] = &variant_avx2;
#endif
  found[count++] = &variant_portable;
  return index < count ? found[index] : nullptr;
}

const char* mha2mla_name(const Variant* v) { return v->name; }
int mha2mla_write(const Variant* v, const Write* w) { return v->write(w); }
int mha2mla_attend(const Variant* v, const Attention* a) { return v->attend(a); }
int mha2mla_layer(const Variant* v, const Layer* l, const Step* s) { return v->layer(l, s); }
int64_t mha2mla_packed_size(const Variant* v, const Weights* w) { return v->packed_size(w); }
void mha2mla_pack(const Variant* v, const Weights* w) { v->pack(w); }
void mha2mla_exp2(const Variant* v, const float* x, float* y, int64_t n) { v->exp2(x, y, n); }
int mha2mla_max_threads() { return max_threads(); }
}
#pragma GCC visibility pop
