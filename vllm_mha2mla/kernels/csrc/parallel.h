// Threads and scratch memory, shared by all variants.
#pragma once

#include <stddef.h>
#include <stdint.h>

int max_threads();

// Calls body(context, task, worker) for every task, tasks handed out in order to whichever worker
// is free. Workers are numbered below max_threads().
typedef void (*TaskBody)(void* context, int64_t task, int worker);
void parallel_for(int64_t tasks, bool worth_threads, TaskBody body, void* context);

// Scratch memory of the calling thread that is kept for its next call, unless it is large.
// A slot is in use until the holder goes out of scope.
enum ScratchSlot { ATTENTION_SCRATCH, LAYER_SCRATCH, SCRATCH_SLOTS };
class Scratch {
 public:
  Scratch(ScratchSlot slot, size_t bytes, size_t keep);
  ~Scratch();
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  char* data;  // aligned to 64 bytes; null if there is no memory

 private:
  bool owned;
};
