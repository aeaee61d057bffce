// Asynchronous copies from global to shared memory (PTX ISA, "cp.async").
#pragma once

#include "girih/shared/platform.cuh"

namespace girih {

// 16 bytes, past L1; zeros are written instead when `exists` is false, and nothing is read.
__device__ __forceinline__ void cp_async_16(uint32 shared, const void* global, bool exists) {
  const int bytes = exists ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global),
               "r"(bytes)
               : "memory");
}

__device__ __forceinline__ void cp_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most kPending of this thread's latest groups are under way.
template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace girih
