// The copy engine: boxes of tensors between global and shared memory (PTX ISA,
// "cp.async.bulk.tensor", "fence.proxy.async", "prefetch.tensormap"). One thread issues a copy,
// chosen by elect_one(): under a comparison of threadIdx ptxas wraps each copy in a loop.
#pragma once

#include "girih/shared/tensor_map.cuh"

namespace girih {

// Where a box starts, innermost dimension first.
struct BoxOrigin {
  int column;
  int row;
  int head;
  int batch;
};

// Brings a box; its bytes count on the barrier. Elements outside the tensor arrive as zeros.
__device__ __forceinline__ void tma_load(uint32 shared, const TensorMap& map, uint32 barrier,
                                         BoxOrigin at) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5, %6}], [%2];" ::"r"(shared),
      "l"(&map), "r"(barrier), "r"(at.column), "r"(at.row), "r"(at.head), "r"(at.batch)
      : "memory");
}

// The same in a tensor over a grid, of five dimensions.
struct GridBoxOrigin {
  int column;
  int c, b, a;
  int batch;
};

__device__ __forceinline__ void tma_load_grid(uint32 shared, const TensorMap& map, uint32 barrier,
                                              GridBoxOrigin at) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5, %6, %7}], [%2];" ::"r"(shared),
      "l"(&map), "r"(barrier), "r"(at.column), "r"(at.c), "r"(at.b), "r"(at.a), "r"(at.batch)
      : "memory");
}

// Takes a box away; elements outside the tensor are not written.
__device__ __forceinline__ void tma_store(const TensorMap& map, uint32 shared, BoxOrigin at) {
  asm volatile(
      "cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group "
      "[%0, {%2, %3, %4, %5}], [%1];" ::"l"(&map),
      "r"(shared), "r"(at.column), "r"(at.row), "r"(at.head), "r"(at.batch)
      : "memory");
}

__device__ __forceinline__ void tma_store_commit() {
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

// Waits until the thread's stores have read shared memory.
__device__ __forceinline__ void tma_store_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory");
}

__device__ __forceinline__ void tma_prefetch_map(const TensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// Orders this thread's ordinary accesses to shared memory before later ones by the copy engine and
// the tensor cores.
__device__ __forceinline__ void fence_proxy_async() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

}  // namespace girih
