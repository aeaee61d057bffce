// Warps as actors (PTX ISA, "%tid").
#pragma once

#include "girih/shared/platform.cuh"

namespace girih {

// threadIdx.x, read again: the compiler keeps nothing derived from it in registers until here.
__device__ __forceinline__ int fresh_thread_index() {
  int index;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
  return index;
}

}  // namespace girih
