// Stands before templates/girih/ptx/warp.cuh where device code runs on emulated warps.
#pragma once

#include "girih/shared/platform.cuh"

namespace girih {

inline int fresh_thread_index() { return threadIdx.x; }

}  // namespace girih
