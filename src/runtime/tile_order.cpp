#include "runtime/tile_order.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>

#include "girih/error.hpp"
#include "plan/plan.hpp"

namespace girih::runtime {

// Under block masks query tiles do not go through the keys together: a quarter of what others may
// have is best, by 6 % at length 8192, and never worse. Documents' tiles share only what is near,
// and end together better where there are more of them: 2 % (tools/bench/NOTES.md).
std::int64_t section_bytes(const std::vector<std::string>& structures, int l2_bytes) {
  const std::int64_t bytes = l2_bytes / 3 * 2;
  return plan::any_contains(structures, {"Leaf<Blocks>"})     ? bytes / 4
         : plan::any_contains(structures, {"Leaf<Segments>"}) ? bytes * 2
                                                              : bytes;
}

void plan_order(FwdParams& params, const Problem& problem, const QueryTileShape& tile,
                std::int64_t section_bytes) {
  const std::int64_t key_bytes = 2 * (problem.head_dim + problem.width_v());
  const std::int64_t kv_head_bytes = key_bytes * std::max(params.geometry.seqlen_k, 1);
  const std::int64_t kv_heads = std::max<std::int64_t>(section_bytes / kv_head_bytes, 1);
  params.heads_per_section = static_cast<int>(
      std::min<std::int64_t>(kv_heads * problem.group_size(), std::max(params.num_batch_heads, 1)));

  params.num_m_blocks = (params.geometry.seqlen_q + tile.rows - 1) / tile.rows;
  params.num_batch_heads /= tile.heads;
  params.heads_per_section = std::max(params.heads_per_section / tile.heads, 1);
  const std::int64_t num_tiles = std::int64_t{params.num_batch_heads} * params.num_m_blocks;
  if (num_tiles > kMaxNumber) {
    throw Error(Errc::invalid_argument,
                fmt::format("{} heads of all sequences x {} query tiles is more than {}: split the "
                            "batch",
                            params.num_batch_heads, params.num_m_blocks, kMaxNumber));
  }
  params.num_tiles = static_cast<int>(num_tiles);
  params.tiles_per_series = 1;
}

void group_into_series(FwdParams& params, int num_ctas) {
  constexpr int kMostTiles = 8;
  const std::int64_t num_tiles = params.num_tiles;
  const std::int64_t section = std::int64_t{params.heads_per_section} * params.num_m_blocks;
  const auto fits = [&](int tiles) {
    const std::int64_t round = std::int64_t{tiles} * num_ctas;  // a series for each CTA
    // A sixteenth may be missing: half of what series gain.
    const auto fill = [&](std::int64_t tiles_there, std::int64_t rounds) {
      return rounds * round <= tiles_there + tiles_there / 16;
    };
    // Or CTAs go through the keys of more heads at once than the cache holds: 1.3 times as slow.
    const bool share_keys = fill(section, 1);
    // Tiles of one length in full rounds. Of tiles that differ the last section's longest series
    // are waited for in the end: it has shorter ones to fill the gaps, or is a small part of all.
    const bool end_together = fill(num_tiles, (num_tiles + round - 1) / round) &&
                              (fill(section, 2) || fill(num_tiles, 8));
    return share_keys && end_together;
  };
  // Of packed queries only the longest sequence is known, and of few tiles one CTA must not have
  // most.
  int tiles = params.cu_seqlens_q == nullptr ? kMostTiles : 1;
  while (tiles > 1 && !fits(tiles)) tiles /= 2;
  params.tiles_per_series = tiles;
  params.num_m_blocks = ceil_div(params.num_m_blocks, tiles);
  params.num_tiles = params.num_batch_heads * params.num_m_blocks;
}

}  // namespace girih::runtime
