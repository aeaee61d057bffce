// Which key tiles pruned heads skip, found without the library: by the maxima of a case's tiles in
// float64 and the definition of `prune`.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "girih/pattern.hpp"
#include "verify/verify.hpp"

namespace girih::verify {

/// What a pruned pattern's rows see: all but the tiles that are skipped.
struct PrunedReading {
  MaskRow mask;
  std::int64_t tiles = 0;  ///< that may be skipped: not all hidden, nor kept by their place
  std::int64_t skipped = 0;
  std::int64_t moved = 0;  ///< thresholds, for a maximum was nearer than kernels' sums are exact
};

/// Decides on the tiles of a case, whose q and k are the workload's, in host memory. `mask` is what
/// rows see before. Thresholds of the case's inputs become such that `InputData::skip` of the tiles
/// are below them, where that is not 0; those near to a maximum move to the next gap between two.
/// Sequences are equally long. @throws Error unsupported where that would take the CPU long.
PrunedReading prune_reading(const Pattern& pattern, Case& c, const AttentionInputs& tensors,
                            const MaskRow& mask);

}  // namespace girih::verify
