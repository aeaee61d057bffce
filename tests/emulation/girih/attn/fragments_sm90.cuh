// Stands before templates/girih/attn/fragments_sm90.cuh where device code runs on emulated warps:
// what consumers use of a kernel is what the test's Config has.
#pragma once

#include "girih/attn/pipeline_sm90.cuh"

namespace girih {

template <class Config>
struct FragmentsSm90 : Config {};

}  // namespace girih
