// Arguments of a launch: checked against the problem, and turned into kernel parameters.
#pragma once

#include "girih/jit.hpp"
#include "girih/shared/params.cuh"

namespace girih::runtime {

/// The problem that these tensors pose. @throws Error invalid_argument when their shapes disagree.
Problem problem_of(const jit::Args& args);

/// Everything but the order of tiles. Formats text only when it throws.
/// @throws Error invalid_argument naming the tensor, the value and what it should be.
FwdParams forward_params(const jit::Args& args, const Problem& problem);

}  // namespace girih::runtime
