// Rings of stages that some warps fill and others empty, and how these wait for one another: each
// stage has a barrier for those who wait until it is full, and one until it is empty.
#pragma once

#include "girih/ptx/mbarrier.cuh"
#include "girih/tile/swizzle.cuh"

namespace girih {

// A position in a ring of stages, and the parity of the phase in which this lap fills the stage.
template <int kStages>
struct Ring {
  int stage = 0;
  uint32 parity = 0;
  __device__ __forceinline__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
  // At most one lap.
  __device__ __forceinline__ Ring ahead(int steps) const {
    const int at = stage + steps;
    const bool next_lap = at >= kStages;
    return {next_lap ? at - kStages : at, parity ^ (next_lap ? 1u : 0u)};
  }
};

// The same for rings of query tiles, whose depths are powers of two, from the tile's number.
template <int kStages>
__device__ __forceinline__ Ring<kStages> ring_at(uint32 count) {
  return {static_cast<int>(count % kStages), count / kStages % 2};
}

__device__ __forceinline__ void wait(const uint64& barrier, uint32 parity) {
  mbarrier_wait(shared_address(&barrier), parity);
}
__device__ __forceinline__ bool has_ended(const uint64& barrier, uint32 parity) {
  return mbarrier_has_ended(shared_address(&barrier), parity);
}
__device__ __forceinline__ void arrive(const uint64& barrier) {
  mbarrier_arrive(shared_address(&barrier));
}

// A warp is done with something: one lane says so for all. compute-sanitizer's racecheck does not
// see that __syncwarp orders the reads of the others before that, and tools/gpu_check lets all of
// them speak for it.
constexpr int kSpeakingLanes = 1;
__device__ __forceinline__ void release(const uint64& barrier, int lane) {
  __syncwarp();
  if (lane < kSpeakingLanes) arrive(barrier);
}

}  // namespace girih
