// Sums over the threads of a CTA, in their order.
#pragma once

#include "girih/ptx/warp.cuh"
#include "girih/shared/platform.cuh"

namespace girih {

// What the threads before this one have together, and in `all` what all have. `counts` is shared
// memory for one number a warp; all threads call it together.
template <int kThreads>
__device__ __forceinline__ int sum_before(int own, int* counts, int& all) {
  constexpr int kWarps = kThreads / 32;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int sum = sum_up_to_lane(own);
  if (lane == 31) counts[warp] = sum;
  __syncthreads();
  all = 0;
  int before = 0;
#pragma unroll 8
  for (int i = 0; i < kWarps; ++i) {
    if (i == warp) before = all;
    all += counts[i];
  }
  __syncthreads();
  return before + sum - own;
}

}  // namespace girih
