// Lines that are wanted soon (PTX ISA, "prefetch").
#pragma once

#include "girih/shared/platform.cuh"

namespace girih {

__device__ __forceinline__ void prefetch_l2(const void* global) {
  asm volatile("prefetch.global.L2 [%0];" ::"l"(global));
}

}  // namespace girih
