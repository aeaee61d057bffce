// Arguments of a merge of partial results, checked and turned into kernel parameters.
#pragma once

#include "girih/combine.cuh"
#include "girih/combine.hpp"

namespace girih::runtime {

/// Formats text only when it throws.
/// @throws Error invalid_argument naming the tensor, the value and what it should be.
CombineParams combine_params(const jit::CombineArgs& args);

}  // namespace girih::runtime
