// Stands before templates/girih/ptx/warp.cuh where device code runs on emulated warps.
#pragma once

#include "girih/shared/platform.cuh"

namespace girih {

inline uint32 fresh_thread_index() { return static_cast<uint32>(threadIdx.x); }

}  // namespace girih
