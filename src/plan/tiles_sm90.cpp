#include "plan/tiles_sm90.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "girih/shared/slash.cuh"
#include "girih/shared/smem_layout.cuh"

namespace girih::plan {
namespace {

// Registers of a consumer's thread for scores, probabilities and output, by what was compiled
// without spills: of 152 or 160 with three consumer warpgroups, and up to 232 with two,
// or 224 beside columns and slashes (fwd_sm90.cuh).
constexpr int kMostFragmentsOfThree = 128;
constexpr int kMostFragmentsOfThreeElaborate = 112;
// Neighborhoods, and documents, causal or not; or simple masks beside soft caps or expressions.
constexpr int kMostFragmentsOfThreeAlone = 124;
constexpr int kMostFragments = 180;
constexpr int kMostFragmentsAt176 = 168;  // of heads wider than 160, up to 176
constexpr int kMostFragmentsElaborate = kFwdSm90RoomyFragments;
constexpr int kMostFragmentsElaborateLong = 168;  // of more than 128 keys
constexpr int kMostFragmentsElaborateSoftcap = 172;
constexpr int kMostFragmentsScores = 168;
constexpr int kMostFragmentsElaborateSoftcapScores = 156;  // of heads up to 192
constexpr int kMostFragmentsPrunedScores = 128;            // by expressions, or of elaborate masks
constexpr int kMostFragmentsMixedNeighborhoodsScores = 140;
constexpr int kMostFragmentsMixedNeighborhoods = 164;
constexpr int kMostFragmentsMixedSlashes = 164;  // of heads wider than 192
constexpr int kMostFragmentsMixedSlashesScores = 160;
constexpr int kMostFragmentsStrided = 172;  // of heads wider than 192
// Above 192: neighborhoods, and modified scores of elaborate masks.
constexpr int kLessForWideHeads = 12;
// Keys where scores are modified by expressions, of which ptxas loads as many elements ahead as a
// tile has; above head_dim 128, and beside block lists and heads of slashes alone, what divides by
// 80 takes more.
constexpr int kMostKeysOfScoreExpressions = 80;
constexpr int kMostKeysOfCrowdedScoreExpressions = 64;
constexpr int kMostKeysOfThreeNeighborhoods = 96;  // with three consumer warpgroups

int warps_of(int block_m) { return 4 * (1 + block_m / 64); }

int fragment_registers(const TileConfig& tile, const Problem& problem) {
  return fwd_sm90_fragment_registers(tile.block_n, problem.width_v());
}

int most_fragments(const TileConfig& tile) {
  return tile.block_m == 192 ? kMostFragmentsOfThree : kMostFragments;
}

// Pruning takes registers, too.
bool is_elaborate(const PatternTraits& pattern) {
  return pattern.elaborate || pattern.prune_kv > 0;
}

int most_fragments_of_mask(const TileConfig& tile, const PatternTraits& pattern) {
  if (!is_elaborate(pattern)) {
    const bool crowded = pattern.documents || pattern.softcap || pattern.score_expressions;
    return tile.block_m == 192 && crowded ? kMostFragmentsOfThreeAlone : most_fragments(tile);
  }
  if (tile.block_m == 192) {
    return pattern.neighborhoods && !pattern.mixed_neighborhoods && !pattern.softcap
               ? kMostFragmentsOfThreeAlone
               : kMostFragmentsOfThreeElaborate;
  }
  return pattern.mixed_neighborhoods ? kMostFragmentsMixedNeighborhoods
         : pattern.softcap           ? kMostFragmentsElaborateSoftcap
                                     : kMostFragmentsElaborate;
}

int most_fragments(const TileConfig& tile, const Problem& problem, const PatternTraits& pattern) {
  const int width = std::max(problem.head_dim, problem.width_v());
  const bool wide = width > kWidestWithSpareRegisters;
  const bool elaborate = is_elaborate(pattern);
  int limit = most_fragments_of_mask(tile, pattern);
  const auto at_most = [&limit](bool holds, int fragments) {
    if (holds) limit = std::min(limit, fragments);
  };
  at_most(pattern.scores && tile.block_m == 128, pattern.mixed_neighborhoods
                                                     ? kMostFragmentsMixedNeighborhoodsScores
                                                     : kMostFragmentsScores);
  at_most(elaborate && tile.block_n > 128, kMostFragmentsElaborateLong);
  at_most(width > 160 && width <= 176, kMostFragmentsAt176);
  at_most(pattern.elaborate && pattern.softcap && pattern.scores && !wide,
          kMostFragmentsElaborateSoftcapScores);
  at_most(pattern.prune_kv > 0 && pattern.elaborate && pattern.scores, kMostFragmentsPrunedScores);
  if (wide && (pattern.neighborhoods || (elaborate && pattern.scores))) limit -= kLessForWideHeads;
  at_most(pattern.mixed_slashes && wide, kMostFragmentsMixedSlashes);
  at_most(pattern.mixed_slashes && pattern.scores, kMostFragmentsMixedSlashesScores);
  at_most(pattern.strided && wide, kMostFragmentsStrided);
  return limit;
}

}  // namespace

// 64 rows of as many query heads as there are consumer warpgroups, where blocks of rows are not
// larger and those heads see the same keys: a gathered key tile then serves every warpgroup.
bool packs_heads(const Problem& problem, const PatternTraits& pattern, int block_m) {
  return pattern.prune_kv == 0 && problem.shared_inputs && pattern.q_block_size > 0 &&
         pattern.q_block_size <= 64 && problem.group_size() % (block_m / 64) == 0;
}

bool shares_blocks(const Problem& problem, const PatternTraits& pattern, int block_m) {
  return packs_heads(problem, pattern, block_m) ||
         (pattern.q_block_size > 0 && pattern.q_block_size % block_m == 0);
}

int shared_bytes_sm90(const TileConfig& tile, const Problem& problem) {
  return fwd_sm90_layout(tile.block_m, tile.block_n, problem.head_dim, problem.width_v(),
                         tile.num_stages, tile.num_q_stages)
      .bytes;
}

namespace {

bool wants_to_gather(const TileConfig& tile, const Problem& problem, const PatternTraits& pattern) {
  return gathers_slashes(pattern.slashes, tile.block_m, tile.block_n, kSlashBox,
                         packs_heads(problem, pattern, tile.block_m), pattern.prune_kv == 0);
}

bool has_room_to_gather(const TileConfig& tile, const Problem& problem, const Arch& arch) {
  return shared_bytes_sm90(tile, problem) + gathered_keys_bytes(tile.block_n, tile.num_stages) <=
         arch.shared_bytes_per_cta();
}

// Whether there is room for what gathering needs, where keys are gathered, and for three stages if
// these matter: a gathered tile is often one warpgroup's alone, and with two neither gets ahead.
bool suits_gathering(const TileConfig& tile, const Problem& problem, const PatternTraits& pattern,
                     const Arch& arch, bool stages_matter) {
  return !wants_to_gather(tile, problem, pattern) ||
         (has_room_to_gather(tile, problem, arch) && (tile.num_stages > 2 || !stages_matter));
}

}  // namespace

bool gathers(const TileConfig& tile, const Problem& problem, const PatternTraits& pattern,
             const Arch& arch) {
  return wants_to_gather(tile, problem, pattern) && has_room_to_gather(tile, problem, arch);
}

// Where all rows of a tile see the same blocks, and where blocks are so small that few tiles of
// consecutive keys would be without a visible one. What prune decides on are consecutive keys.
int key_box(const TileConfig& tile, const Problem& problem, const PatternTraits& pattern,
            const Arch& arch) {
  if (pattern.prune_kv > 0) return tile.block_n;
  if (wants_to_gather(tile, problem, pattern)) {
    return has_room_to_gather(tile, problem, arch) ? kSlashBox : tile.block_n;
  }
  const int size = pattern.kv_block_size;
  const bool fits = size > 0 && size % 16 == 0 && size < tile.block_n && tile.block_n % size == 0 &&
                    std::max(problem.head_dim, problem.width_v()) <= kWidestWithSpareRegisters;
  return fits && (shares_blocks(problem, pattern, tile.block_m) || size < 64) ? size : tile.block_n;
}

// The most keys that registers and shared memory hold, for long rows of wgmma hide the softmax
// best; measured at head_dim 64 to 256 (tools/bench/NOTES.md). Three consumer warpgroups read keys
// from memory less often and pass over more of what a window cuts off, where V is narrow and the
// mask leaves them registers. Where rows see few keys, 64 fill tiles better. Of stages, as many as
// there is room for: passing over key tiles needs them, but more than five, or three of more than
// 64 keys, bring nothing. Tiles divide the blocks of a run-time mask, down to 64 keys, or are
// gathered from smaller ones.
std::optional<TileConfig> choose_tile_sm90(const Arch& arch, const Problem& problem,
                                           const PatternTraits& pattern,
                                           const TileConfig& requested) {
  const int width = std::max(problem.head_dim, problem.width_v());
  const bool prune = pattern.prune_kv > 0;
  const bool elaborate = is_elaborate(pattern);
  const bool many_keys_requested =
      fwd_sm90_fragment_registers(requested.block_n, problem.width_v()) >
      kMostFragmentsOfThreeElaborate;
  const bool three =
      width <= 128 && !prune && !pattern.softcap &&
      (!elaborate || (pattern.token_indices && !pattern.scores && !many_keys_requested &&
                      (requested.num_warps == 0 || requested.num_warps == warps_of(192))));
  const bool short_rows =
      pattern.keys == KeysPerRow::few || (pattern.keys == KeysPerRow::some && width > 64);
  TileConfig tile = requested;
  if (tile.block_m == 0) tile.block_m = three ? 192 : 128;
  if (tile.num_warps == 0) tile.num_warps = warps_of(tile.block_m);
  if (tile.num_stages == 0) tile.num_stages = 2;
  const bool small_blocks =  // which tiles are gathered from
      pattern.kv_block_size > 0 && !pattern.slashes &&
      key_box({.block_m = tile.block_m, .block_n = 128}, problem, pattern, arch) < 128;
  // Stages take keys, of which fewer were slower where heads are wide or tiles divide blocks.
  const bool stages_matter =
      width <= 128 && requested.num_stages == 0 && pattern.kv_block_size == 0;
  const bool crowded_expressions = width > 128 || pattern.kv_block_size > 0 || pattern.slashes;
  const int most_keys =
      requested.block_n                                      ? requested.block_n
      : prune                                                ? pattern.prune_kv
      : pattern.score_expressions && crowded_expressions     ? kMostKeysOfCrowdedScoreExpressions
      : pattern.score_expressions                            ? kMostKeysOfScoreExpressions
      : shares_blocks(problem, pattern, 128) || small_blocks ? 128
      : pattern.kv_block_size > 0                    ? std::clamp(pattern.kv_block_size, 64, 128)
      : three && short_rows                          ? 64
      : pattern.neighborhoods && tile.block_m == 192 ? kMostKeysOfThreeNeighborhoods
                                                     : 128;
  for (tile.block_n = most_keys; tile.block_n >= 16; tile.block_n -= 16) {
    if (pattern.kv_block_size > 0 && most_keys % tile.block_n != 0) continue;
    for (const int num_q_stages : {2, 1}) {
      for (const int num_stages : {5, 4, 3, 2}) {
        if (num_stages > (tile.block_n <= 64 ? 5 : 3)) continue;
        // Skipped tiles pass faster than two stages of K fill.
        if (prune && num_q_stages == 2 && num_stages == 2) continue;
        tile.num_stages = requested.num_stages ? requested.num_stages : num_stages;
        tile.num_q_stages = requested.num_q_stages ? requested.num_q_stages : num_q_stages;
        const bool roomy = requested.block_n != 0 ||
                           (has_registers(tile, problem, pattern) &&
                            suits_gathering(tile, problem, pattern, arch, stages_matter));
        if (roomy && reasons_against_sm90(tile, problem, arch).empty()) return tile;
      }
    }
    if (requested.block_n != 0 || prune) break;
  }
  if (requested.num_q_stages == 0) return std::nullopt;
  tile.block_n = most_keys;
  return tile;
}

std::vector<std::string> reasons_against_sm90(const TileConfig& tile, const Problem& problem,
                                              const Arch& arch) {
  std::vector<std::string> reasons;
  if (arch.number != 90) {
    reasons.push_back(
        fmt::format("num_q_stages {} is not supported on {}: only Hopper's kernel, "
                    "for sm_90, has Q tiles in flight; leave it 0",
                    tile.num_q_stages, arch.name()));
    return reasons;
  }
  if (tile.block_m != 128 && tile.block_m != 192) {
    reasons.push_back(fmt::format(
        "block_m {} is not supported by the Hopper kernel: 128 and 192 are", tile.block_m));
    return reasons;
  }
  if (tile.num_warps != warps_of(tile.block_m)) {
    reasons.push_back(fmt::format("num_warps {} is not supported with block_m {}: {} is",
                                  tile.num_warps, tile.block_m, warps_of(tile.block_m)));
  }
  if (tile.block_n < 16 || tile.block_n > 256 || tile.block_n % 16 != 0) {
    reasons.push_back(fmt::format("block_n {} is not supported: multiples of 16 from 16 to 256 are",
                                  tile.block_n));
  }
  if (tile.num_stages < 2 || tile.num_stages > 8) {
    reasons.push_back(fmt::format("num_stages {} is not supported: 2 to 8 are", tile.num_stages));
  }
  if (tile.num_q_stages < 1 || tile.num_q_stages > 2) {
    reasons.push_back(
        fmt::format("num_q_stages {} is not supported: 1 and 2 are", tile.num_q_stages));
  }
  if (!reasons.empty()) return reasons;

  const int fragments = fragment_registers(tile, problem);
  if (fragments > most_fragments(tile)) {
    reasons.push_back(fmt::format(
        "block_m {} x block_n {} at head_dim_v {} takes {} registers a thread for scores, "
        "probabilities and output, more than {}: take a smaller block_n",
        tile.block_m, tile.block_n, problem.width_v(), fragments, most_fragments(tile)));
  }
  const int bytes = shared_bytes_sm90(tile, problem);
  if (bytes > arch.shared_bytes_per_cta()) {
    reasons.push_back(fmt::format(
        "block_m {} x block_n {} with {} stages and {} of Q takes {} bytes of shared memory, more "
        "than the {} of {}: take smaller blocks or fewer stages",
        tile.block_m, tile.block_n, tile.num_stages, tile.num_q_stages, bytes,
        arch.shared_bytes_per_cta(), arch.name()));
  }
  return reasons;
}

bool has_registers(const TileConfig& tile, const Problem& problem, const PatternTraits& pattern) {
  return fragment_registers(tile, problem) <= most_fragments(tile, problem, pattern);
}

// Without those that spill: many keys of narrow heads, and three consumer warpgroups with one Q and
// as many registers as fit beside two.
std::vector<TileConfig> candidates_sm90(const Problem& problem, const Arch& arch) {
  const int most_keys = problem.width_v() < 128 ? 128 : 176;
  std::vector<TileConfig> tiles;
  for (const int block_m : {128, 192}) {
    for (int block_n = 48; block_n <= most_keys; block_n += 16) {
      for (const int num_stages : {2, 3, 4, 5}) {
        for (const int num_q_stages : {2, 1}) {  // two are never worse
          const TileConfig tile{block_m, block_n, num_stages, warps_of(block_m), num_q_stages};
          if (!reasons_against_sm90(tile, problem, arch).empty()) continue;
          const bool crowded = block_m == 192 && num_q_stages == 1 &&
                               fragment_registers(tile, problem) > kMostFragmentsOfThreeElaborate;
          if (!crowded) tiles.push_back(tile);
          break;
        }
      }
    }
  }
  return tiles;
}

}  // namespace girih::plan
