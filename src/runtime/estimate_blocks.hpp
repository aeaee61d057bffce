// Arguments of an estimate of blocks, checked and turned into kernel parameters.
#pragma once

#include <cstddef>

#include "girih/estimate.hpp"
#include "girih/estimate_blocks.cuh"
#include "girih/pool_blocks.cuh"
#include "plan/arch.hpp"

namespace girih::runtime {

/// What the kernels are launched with, but for their scratch memory.
struct EstimateBlocksPlan {
  EstimateBlocksParams estimate;
  PoolBlocksParams pool;
  DType dtype;
  int head_dim;
  bool means;  ///< whether `pool` is launched
  int num_ctas;
  std::size_t q_means_bytes, k_means_bytes, values_bytes;
};

/// Formats text only when it throws.
/// @throws Error invalid_argument, unsupported naming the argument, the value and what it should
/// be.
EstimateBlocksPlan estimate_blocks_plan(const jit::EstimateBlocksArgs& args, int num_sms);

/// As many stages as the architecture's shared memory holds.
int estimate_blocks_stages(const plan::Arch& arch);

}  // namespace girih::runtime
