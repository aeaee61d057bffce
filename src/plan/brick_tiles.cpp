#include "plan/brick_tiles.hpp"

#include <algorithm>

#include "plan/tiles.hpp"

namespace girih::plan {
namespace {

// What visiting tiles costs, in keys of a row: a tile some keys beyond its own, and more where it
// is masked; with three warpgroups for its rows a row costs less. By what was measured on images
// and videos (tools/bench/NOTES.md).
double cost_of(const pattern::TileCounts& tiles, int block_m, int block_n) {
  constexpr int kKeysOfTile = 8, kKeysOfMask = 60;
  constexpr double kRowOfThree = 0.75;
  return (static_cast<double>(tiles.visited()) * (block_n + kKeysOfTile) +
          static_cast<double>(tiles.partial) * kKeysOfMask) *
         block_m * (block_m == 192 ? kRowOfThree : 1);
}

// Smaller grids are bricks where those visit less than all: either way takes microseconds.
constexpr int kFewTokens = 4096;

// How much longer tokens in a row take than their tiles say, for what a row sees of them takes
// longer to find than of bricks: where the two are about as fast; with a dilation from one example
// (NOTES).
constexpr double kMaskInRows = 1.25, kDilatedMaskInRows = 2;

bool suit_rows(std::span<const BrickHeads> heads, const TileConfig& tile, double cost_of_bricks) {
  const Neighborhood n = heads[0].neighborhood();
  if (n.tokens() < kFewTokens) return false;
  const bool dilated = grid_of(n).dilation.volume() > 1;
  const pattern::TileCounts in_rows = estimate_row_tiles(heads, tile.block_m, tile.block_n);
  const double factor = dilated ? kDilatedMaskInRows : kMaskInRows;
  return factor * cost_of(in_rows, tile.block_m, tile.block_n) <= cost_of_bricks;
}

}  // namespace

std::optional<Bricks> plan_bricks(std::span<const BrickHeads> heads, const Arch& arch,
                                  const Problem& problem, const PatternTraits& traits,
                                  const TileConfig& requested, TileConfig& tile) {
  if (heads.empty() || family_of(tile) != KernelFamily::fwd_sm90) return std::nullopt;
  std::optional<Bricks> best;
  TileConfig best_tile;
  double least = 0;
  const bool narrow = std::max(problem.head_dim, problem.width_v()) <= 128;
  for (const int block_m : {128, 192}) {
    if (block_m == 192 && !narrow && requested.block_m == 0) continue;
    TileConfig own = requested;
    if (own.block_m == 0) own.block_m = block_m;
    if (own.block_m != block_m) continue;
    const TileConfig widest = choose_tile(arch, problem, traits, own);
    if (family_of(widest) != KernelFamily::fwd_sm90 ||
        !reasons_against(widest, problem, arch).empty()) {
      continue;
    }
    const int fewest_keys = requested.block_n != 0 ? widest.block_n : std::min(48, widest.block_n);
    for (own.block_n = widest.block_n; own.block_n >= fewest_keys; own.block_n -= 16) {
      const std::optional<Bricks> bricks = choose_bricks(heads, block_m, own.block_n);
      if (!bricks) continue;
      const double cost = cost_of(count_tiles(heads, *bricks), block_m, own.block_n);
      if (best && cost >= least) continue;
      best = bricks;
      best_tile = choose_tile(arch, problem, traits, own);
      least = cost;
    }
  }
  if (!best || suit_rows(heads, tile, least)) return std::nullopt;
  tile = best_tile;
  return best;
}

// Deciding costs some per cent, more than it saves where few tiles are seen by some warpgroups
// only.
bool passes_over(std::span<const BrickHeads> heads, const Bricks& bricks) {
  const BrickTiles tiles = count_tiles(heads, bricks);
  return tiles.parts < 0.97 * static_cast<double>(tiles.visited());
}

}  // namespace girih::plan
