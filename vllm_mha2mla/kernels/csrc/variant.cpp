// One instruction set's build of the kernel; build.py compiles this file once for each.
//
// Everything but the table at the end has internal linkage, so that no variant's code can take
// the place of another's.
#include "layer.h"

static void exp2_all(const float* x, float* y, int64_t n) {
  for (int64_t i = 0; i < n; i += LANES) {
    const int64_t some = n - i < LANES ? n - i : LANES;
    const vf value = some == LANES ? load(x + i) : load_some(x + i, some);
    store_some(y + i, exp2(value), some);
  }
}

#define JOIN(a, b) a##b
#define NAME(isa) JOIN(variant_, isa)
#define STRING_OF(x) #x
#define STRING(x) STRING_OF(x)

extern const Variant NAME(ISA);
const Variant NAME(ISA) = {STRING(ISA), write, attend, layer, packed_size, pack, exp2_all};
