// Warps as actors: one lane of them, sums over lanes, and registers (PTX ISA, "%tid", "elect.sync",
// "shfl.sync", "setmaxnreg").
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

// The sum of a lane's number and those of the lanes before; by a warp.
template <class Number>  // int or uint32
__device__ __forceinline__ Number sum_up_to_lane(Number number) {
#pragma unroll
  for (int delta = 1; delta < 32; delta *= 2) {
    asm volatile(
        "{\n"
        ".reg .u32 before;\n"
        ".reg .pred exists;\n"
        "shfl.sync.up.b32 before|exists, %0, %1, 0, 0xffffffff;\n"
        "@exists add.u32 %0, %0, before;\n"
        "}\n"
        : "+r"(number)
        : "r"(delta));
  }
  return number;
}

// The sum of all lanes' numbers.
__device__ __forceinline__ uint32 sum_of_lanes(uint32 number) {
  return __reduce_add_sync(0xffffffff, number);
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
