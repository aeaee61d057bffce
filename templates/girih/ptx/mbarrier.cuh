// Barriers in shared memory that also count bytes (PTX ISA, "mbarrier"), and named barriers between
// some of a CTA's warps (PTX ISA, "bar", "barrier"). Arrivals and waits carry no .release or
// .acquire of a wider scope than the CTA: those would add fences of the whole GPU.
#pragma once

#include "girih/shared/platform.cuh"

namespace girih {

// A phase ends after `arrivals` of them and after every expected byte.
__device__ __forceinline__ void mbarrier_init(uint32 barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Makes initialised barriers visible to the copy engine.
__device__ __forceinline__ void fence_mbarrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void mbarrier_arrive(uint32 barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Arrives, and lets the phase also wait for `bytes` that copies will bring.
__device__ __forceinline__ void mbarrier_arrive_expect(uint32 barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

// Whether the phase of that parity has ended.
__device__ __forceinline__ bool mbarrier_has_ended(uint32 barrier, uint32 parity) {
  uint32 ended;
  asm volatile(
      "{\n"
      ".reg .pred ended;\n"
      "mbarrier.test_wait.parity.shared::cta.b64 ended, [%1], %2;\n"
      "selp.u32 %0, 1, 0, ended;\n"
      "}\n"
      : "=r"(ended)
      : "r"(barrier), "r"(parity)
      : "memory");
  return ended != 0;
}

// The same; may sleep for a short time.
__device__ __forceinline__ bool mbarrier_try_wait(uint32 barrier, uint32 parity) {
  uint32 ended;
  asm volatile(
      "{\n"
      ".reg .pred ended;\n"
      "mbarrier.try_wait.parity.shared::cta.b64 ended, [%1], %2;\n"
      "selp.u32 %0, 1, 0, ended;\n"
      "}\n"
      : "=r"(ended)
      : "r"(barrier), "r"(parity)
      : "memory");
  return ended != 0;
}

// No limit on the time: a trap in a block that both roles of a kernel reach makes ptxas ignore the
// registers that setmaxnreg promised.
__device__ __forceinline__ void mbarrier_wait(uint32 barrier, uint32 parity) {
  while (!mbarrier_try_wait(barrier, parity)) {
  }
}

// Waits until kThreads threads, this one's warp among them, have come to the barrier.
template <int kThreads>
__device__ __forceinline__ void named_barrier_sync(int barrier) {
  asm volatile("barrier.cta.sync.aligned %0, %1;" ::"r"(barrier), "n"(kThreads) : "memory");
}

}  // namespace girih
