// The host's side of split query tiles (girih/shared/splits.cuh): how much workspace they take, and
// where in it everything lies.
#pragma once

#include <cstddef>

#include "girih/shared/splits.cuh"
#include "runtime/inputs.hpp"

namespace girih::runtime {

/// What of a kernel and its device matters.
struct SplitShape {
  int block_m = 0;
  int block_n = 0;
  int head_dim_v = 0;
  int num_sms = 0;
};

/// In a workspace the header comes behind the ignored counts, wherever the lengths of a launch put
/// the rest: it is found, and says what it was made for.
constexpr std::size_t kSplitHeaderOffset = kIgnoredCountsBytes;
static_assert(kSplitHeaderOffset % alignof(SplitHeader) == 0 &&
              kSplitHeaderOffset + sizeof(SplitHeader) <= kWorkspaceHeadBytes);

struct SplitPlan {
  SplitMemory memory{};             ///< header null where no tile can have enough visits
  std::size_t workspace_bytes = 0;  ///< with what the inputs take
};

/// Of a launch whose order of tiles is known. @param workspace may be null when only the size is
/// asked for.
SplitPlan plan_splits(const SplitShape& shape, const FwdParams& params,
                      std::size_t workspace_bytes_of_inputs, void* workspace);

}  // namespace girih::runtime
