// Arguments of an estimate of columns and slashes, checked and turned into kernel parameters.
#pragma once

#include <cstddef>

#include "girih/estimate.hpp"
#include "girih/estimate_slash.cuh"
#include "girih/select_largest.cuh"

namespace girih::runtime {

/// What the two kernels are launched with, but for their scratch memory.
struct EstimatePlan {
  EstimateParams estimate;
  SelectParams select;
  DType dtype;
  int head_dim;
  int shared_bytes;  ///< of the first kernel
  std::size_t parts_bytes, sums_bytes;

  std::size_t workspace_bytes() const { return sums_bytes + parts_bytes; }
};

/// Query heads of one KV head that a CTA takes at most: what fits every GPU's shared memory.
int most_estimate_heads(int head_dim);

/// Formats text only when it throws.
/// @throws Error invalid_argument, unsupported naming the argument, the value and what it should
/// be.
EstimatePlan estimate_plan(const jit::EstimateArgs& args, int num_sms);
}  // namespace girih::runtime
