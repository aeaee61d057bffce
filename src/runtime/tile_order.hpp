// In which order the CTAs of a launch take its query tiles; kernels go by what this fills in
// (templates/girih/attn/schedule.cuh).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "girih/problem.hpp"
#include "girih/shared/params.cuh"

namespace girih::runtime {

struct QueryTileShape {
  int rows = 0;   ///< of a head
  int heads = 1;  ///< of one KV head
};

/// How many bytes of K and V the query tiles in flight should share, so that these stay in an L2
/// cache of so many bytes. @param structures of the pattern's classes
std::int64_t section_bytes(const std::vector<std::string>& structures, int l2_bytes);

/// Fills in the order of tiles: heads go together whose keys and values are not more than
/// `section_bytes`. Throws Error(invalid_argument) where there are too many tiles.
void plan_order(FwdParams& params, const Problem& problem, const QueryTileShape& tile,
                std::int64_t section_bytes);

/// Makes series of a planned order's tiles (KeyOrder of attn/prune.cuh), as long as that leaves
/// enough of them for so many CTAs to share keys and to end at one time.
void group_into_series(FwdParams& params, int num_ctas);

}  // namespace girih::runtime
