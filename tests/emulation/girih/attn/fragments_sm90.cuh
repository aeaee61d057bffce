// Stands before templates/girih/attn/fragments_sm90.cuh where device code runs on emulated warps:
// what consumers use of a kernel is what the test's Config has.
#pragma once

#include "girih/shared/platform.cuh"

namespace girih {

constexpr uint32 kPartial = 1;
constexpr uint32 kFirstVisit = 1 << 6;
constexpr uint32 kLastVisit = 1 << 7;
constexpr uint32 kMaySkip = 1 << 14;

template <class Config>
struct FragmentsSm90 : Config {};

}  // namespace girih
