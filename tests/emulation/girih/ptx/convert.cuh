// Stands before templates/girih/ptx/convert.cuh where device code runs on emulated warps.
#pragma once

#include <cmath>

#include "girih/shared/platform.cuh"

namespace girih {

struct Bf16 {};

inline float exp2_approx(float x) { return std::exp2(x); }

}  // namespace girih
