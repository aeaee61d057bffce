#include "plan/tiles.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <tuple>

#include "girih/shared/prune.cuh"
#include "girih/shared/smem_layout.cuh"
#include "plan/tiles_sm90.hpp"

namespace girih::plan {
namespace {

constexpr int kMaxFragmentRegisters = 192;  // of 255; the rest is for everything else

// Registers of a thread that hold scores and output: a 16 x 8 fragment takes four.
int fragment_registers(const TileConfig& tile, const Problem& problem) {
  const int row_fragments = tile.block_m / tile.num_warps / 16;
  return row_fragments * (tile.block_n + problem.width_v()) / 2;
}

TileConfig complete(const TileConfig& requested, const TileConfig& fallback) {
  return {.block_m = requested.block_m ? requested.block_m : fallback.block_m,
          .block_n = requested.block_n ? requested.block_n : fallback.block_n,
          .num_stages = requested.num_stages ? requested.num_stages : fallback.num_stages,
          .num_warps = requested.num_warps ? requested.num_warps : fallback.num_warps,
          .num_q_stages = requested.num_q_stages};
}

auto order_of(const TileConfig& tile) {
  return std::tuple(tile.block_m, tile.block_n, tile.num_stages, tile.num_warps, tile.num_q_stages);
}

bool rows_divide(const TileConfig& tile) {
  return tile.block_m == 16 * tile.num_warps || tile.block_m == 32 * tile.num_warps;
}

// A decision is for a whole tile. Eight warps hold what four do not: 128 keys leave four no
// register for it, nor do scores that are modified behind it. Where two stages have no room, there
// is one.
std::vector<TileConfig> candidates_for_prune(const PatternTraits& pattern, const Problem& problem) {
  constexpr int kWidestOfManyKeys = 192;  // compiled without spills
  const int kv = pattern.prune_kv;
  std::vector<TileConfig> tiles;
  if (kv == 64 && !pattern.scores) tiles.push_back({kPruneRows, kv, 2, 4});
  tiles.push_back({kPruneRows, kv, 2, 8});
  if (kv == 64 || problem.width_v() <= kWidestOfManyKeys) tiles.push_back({kPruneRows, kv, 1, 8});
  return tiles;
}

}  // namespace

KernelFamily family_of(const TileConfig& tile) {
  return tile.num_q_stages == 0 ? KernelFamily::fwd_sm80 : KernelFamily::fwd_sm90;
}

int shared_bytes(const TileConfig& tile, const Problem& problem) {
  if (family_of(tile) == KernelFamily::fwd_sm90) return shared_bytes_sm90(tile, problem);
  return fwd_sm80_layout(tile.block_m, tile.block_n, problem.head_dim, problem.width_v(),
                         tile.num_stages)
      .bytes;
}

// Eight warps have 255 registers a thread. Where scores and output take few, twice as many warps
// with half of them are faster, most of all where rows see few keys (tools/bench/NOTES.md).
int warps_per_sm(const TileConfig& tile, const Problem& problem) {
  constexpr int kFewFragmentRegisters = 64;
  return fragment_registers(tile, problem) <= kFewFragmentRegisters ? 16 : 8;
}

// Of the candidates, completed with what was requested, the first that fits, two CTAs a
// multiprocessor where that is possible, for they hide each other's barriers and softmax. A warp
// with 32 query rows reads each key fragment half as often as two with 16. The order was measured
// on sm_90 (tools/bench/NOTES.md).
//
// Tiles larger than the blocks of a run-time mask compute what is not visible, or must be masked:
// they are not taken, down to 64 rows and 32 keys, below which tiles are slower than that.
TileConfig choose_tile(const Arch& arch, const Problem& problem, const PatternTraits& pattern,
                       const TileConfig& requested) {
  if (arch.number == 90 && !requested.portable) {
    const auto tile = choose_tile_sm90(arch, problem, pattern, requested);
    if (tile) return *tile;
  }
  const bool blocks = pattern.q_block_size > 0 && pattern.prune_kv == 0;
  const int most_rows = blocks ? std::max(pattern.q_block_size, 64) : 128;
  const int most_keys = blocks ? std::max(pattern.kv_block_size, 32) : 128;
  static constexpr TileConfig kCandidates[] = {{128, 64, 2, 4}, {128, 32, 2, 4}, {128, 64, 2, 8},
                                               {128, 32, 2, 8}, {64, 64, 2, 4},  {64, 32, 2, 4},
                                               {64, 16, 2, 4}};
  std::vector<TileConfig> candidates(std::begin(kCandidates), std::end(kCandidates));
  // 128 keys at once pay where the exponentials weigh most, but not where a row's few keys fill
  // no such tile; only on sm_90 was either measured.
  if (arch.number == 90 && problem.width_v() <= 64) {
    candidates.insert(candidates.begin(), pattern.keys == KeysPerRow::few
                                              ? TileConfig{64, 64, 2, 4}
                                              : TileConfig{128, 128, 2, 4});
  }
  if (pattern.prune_kv > 0) candidates = candidates_for_prune(pattern, problem);
  for (const TileConfig& candidate : candidates) {
    if (candidate.block_m > most_rows || candidate.block_n > most_keys) continue;
    const TileConfig tile = complete(requested, candidate);
    if (!rows_divide(tile)) continue;
    const int ctas = std::max(8 / tile.num_warps, 1);  // eight warps have all the registers
    const int bytes = ctas * (shared_bytes(tile, problem) + 1024);
    if (bytes <= arch.shared_bytes_per_sm() &&
        fragment_registers(tile, problem) <= kMaxFragmentRegisters) {
      return tile;
    }
  }
  return complete(requested, candidates.back());
}

std::vector<std::string> reasons_against(const TileConfig& tile, const Problem& problem,
                                         const Arch& arch) {
  if (family_of(tile) == KernelFamily::fwd_sm90) return reasons_against_sm90(tile, problem, arch);
  std::vector<std::string> reasons;
  if (tile.num_warps != 4 && tile.num_warps != 8) {
    reasons.push_back(fmt::format("num_warps {} is not supported: 4 and 8 are", tile.num_warps));
    return reasons;
  }
  if (!rows_divide(tile)) {
    reasons.push_back(fmt::format("block_m {} is not supported with {} warps: {} and {} are",
                                  tile.block_m, tile.num_warps, 16 * tile.num_warps,
                                  32 * tile.num_warps));
  }
  if (tile.block_n < 16 || tile.block_n > 256 || tile.block_n % 16 != 0) {
    reasons.push_back(fmt::format("block_n {} is not supported: multiples of 16 from 16 to 256 are",
                                  tile.block_n));
  }
  if (tile.num_stages < 1 || tile.num_stages > 4) {
    reasons.push_back(fmt::format("num_stages {} is not supported: 1 to 4 are", tile.num_stages));
  }
  if (!reasons.empty()) return reasons;

  const int fragments = fragment_registers(tile, problem);
  if (fragments > kMaxFragmentRegisters) {
    reasons.push_back(fmt::format(
        "block_m {} x block_n {} with {} warps at head_dim_v {} takes {} registers a thread for "
        "scores and output, more than {}: take more warps or a smaller block_n",
        tile.block_m, tile.block_n, tile.num_warps, problem.width_v(), fragments,
        kMaxFragmentRegisters));
  }
  const int bytes = shared_bytes(tile, problem);
  if (bytes > arch.shared_bytes_per_cta()) {
    reasons.push_back(fmt::format(
        "block_m {} x block_n {} with {} stages takes {} bytes of shared memory, more than the {} "
        "of {}: take smaller blocks or fewer stages",
        tile.block_m, tile.block_n, tile.num_stages, bytes, arch.shared_bytes_per_cta(),
        arch.name()));
  }
  return reasons;
}

// Of Hopper's kernel by the tile with the least of what was not requested.
std::vector<std::string> reasons_against_request(const TileConfig& requested,
                                                 const TileConfig& tile, const Problem& problem,
                                                 const PatternTraits& pattern, const Arch& arch) {
  const std::vector<std::string> portable = reasons_against(tile, problem, arch);
  const bool both = arch.number == 90 && !requested.portable && requested != TileConfig{} &&
                    family_of(tile) == KernelFamily::fwd_sm80;
  if (portable.empty() || !both) return portable;
  TileConfig least = requested;
  least.num_q_stages = 1;
  const auto widest = choose_tile_sm90(arch, problem, pattern, least);
  const std::vector<std::string> hopper = reasons_against_sm90(widest.value(), problem, arch);
  if (hopper.empty() || hopper == portable) return portable;
  return {
      fmt::format("Hopper's kernel: {}; the portable kernel: {}; give a tile that one of them "
                  "takes, or leave it out",
                  fmt::join(hopper, "; "), fmt::join(portable, "; "))};
}

static std::vector<TileConfig> candidates_sm80(const Problem& problem) {
  std::vector<TileConfig> tiles;
  for (const int num_warps : {4, 8}) {
    for (const int block_m : {16 * num_warps, 32 * num_warps}) {
      for (const int block_n : {16, 32, 48, 64, 96, 128}) {
        if (block_n == 16 && std::max(problem.head_dim, problem.width_v()) <= 128) continue;
        for (const int num_stages : {2, 3}) {
          tiles.push_back({block_m, block_n, num_stages, num_warps});
        }
      }
    }
  }
  return tiles;
}

std::vector<TileConfig> candidate_tiles(const TileConfig& first, const Problem& problem,
                                        const Arch& arch) {
  std::vector<TileConfig> tiles;
  if (family_of(first) == KernelFamily::fwd_sm90) {
    tiles = candidates_sm90(problem, arch);
    for (const KeysPerRow keys : {KeysPerRow::many, KeysPerRow::few}) {  // seldom faster
      tiles.push_back(choose_tile(arch, problem, {.keys = keys}, {.portable = true}));
    }
  } else {
    tiles = candidates_sm80(problem);
  }
  std::erase_if(tiles, [&](const TileConfig& tile) {
    return tile == first || !reasons_against(tile, problem, arch).empty();
  });
  std::sort(tiles.begin(), tiles.end(),
            [](const TileConfig& a, const TileConfig& b) { return order_of(a) < order_of(b); });
  tiles.erase(std::unique(tiles.begin(), tiles.end()), tiles.end());
  tiles.insert(tiles.begin(), first);
  return tiles;
}

std::vector<TileConfig> candidate_tiles(const Plan& plan, const Problem& problem,
                                        const Arch& arch) {
  std::vector<TileConfig> tiles = candidate_tiles(plan.spec.tile, problem, arch);
  const TileConfig& own = plan.spec.tile;
  std::erase_if(tiles, [&](const TileConfig& tile) {
    if (plan.spec.prune && !reasons_against_prune(tile, own.block_n).empty()) return true;
    return tile != own && family_of(tile) == KernelFamily::fwd_sm90 &&
           !has_registers(tile, problem, plan.traits);
  });
  return tiles;
}

std::vector<std::string> reasons_against_prune(const TileConfig& tile, int prune_kv) {
  std::vector<std::string> reasons;
  if (tile.block_m != kPruneRows) {
    reasons.push_back(
        fmt::format("block_m {} is not supported with prune, which decides for {} rows",
                    tile.block_m, kPruneRows));
  }
  if (tile.block_n != prune_kv) {
    reasons.push_back(
        fmt::format("block_n {} is not supported with prune(..., kv={}): a tile is what it decides "
                    "on; leave it 0",
                    tile.block_n, prune_kv));
  }
  constexpr int kMostStages = 7;  // how far apart warps may be: fewer tiles than kNumVotes
  if (tile.num_stages > kMostStages) {
    reasons.push_back(fmt::format("num_stages {} is not supported with prune: up to {} are",
                                  tile.num_stages, kMostStages));
  }
  return reasons;
}

}  // namespace girih::plan
