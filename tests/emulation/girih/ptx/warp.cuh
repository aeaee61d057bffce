// Stands before templates/girih/ptx/warp.cuh where device code runs on emulated warps.
#pragma once

#include "girih/shared/platform.cuh"

namespace girih {

inline uint32 fresh_thread_index() { return static_cast<uint32>(threadIdx.x); }

template <class Number>
Number sum_up_to_lane(Number number) {
  for (int delta = 1; delta < 32; delta *= 2) {
    const Number before = __shfl_up_sync(0xffffffff, number, delta);
    if (static_cast<int>(threadIdx.x % 32) >= delta) number += before;
  }
  return number;
}

template <class Number>
Number sum_of_lanes(Number number) {
  return __shfl_sync(0xffffffff, sum_up_to_lane(number), 31);
}

}  // namespace girih
