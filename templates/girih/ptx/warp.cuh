// Warps as actors: one lane of them, and their registers (PTX ISA, "%tid", "elect.sync",
// "setmaxnreg").
#pragma once

#include "girih/shared/platform.cuh"

namespace girih {

// True in one lane of a converged warp.
__device__ __forceinline__ bool elect_one() {
  uint32 elected;
  asm volatile(
      "{\n"
      ".reg .pred elected;\n"
      "elect.sync _|elected, 0xffffffff;\n"
      "selp.u32 %0, 1, 0, elected;\n"
      "}\n"
      : "=r"(elected));
  return elected != 0;
}

// threadIdx.x, read again: the compiler keeps nothing derived from it in registers until here.
__device__ __forceinline__ uint32 fresh_thread_index() {
  uint32 index;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
  return index;
}

// A warpgroup gives registers back to the CTA, or waits for as many as others gave back. ptxas
// heeds it only where the kernel's registers are capped at entry and roles part in one if/else.
template <int kRegisters>
__device__ __forceinline__ void shrink_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

template <int kRegisters>
__device__ __forceinline__ void grow_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace girih
