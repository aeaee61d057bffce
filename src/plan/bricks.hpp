// Which bricks of a neighborhood's grid a Hopper kernel takes for its tiles (shared/bricks.cuh).
#pragma once

#include <optional>
#include <span>
#include <string>
#include <vector>

#include "girih/pattern.hpp"
#include "girih/problem.hpp"
#include "girih/shared/bricks.cuh"
#include "pattern/interpret.hpp"

namespace girih::plan {

/// Heads that have the same windows on the grid.
struct BrickHeads {
  Mask mask;  ///< a neighborhood
  int count = 0;
  Neighborhood neighborhood() const { return Neighborhood(mask.numbers().data()); }
};

/// Boxes of the grid, of as many tokens as the kernel's tiles have rows and keys.
struct Bricks {
  GridPoint queries{0, 0, 0};
  GridPoint keys{0, 0, 0};
  friend bool operator==(const Bricks&, const Bricks&) = default;
};

/// What the heads of a launch of one sequence do with bricks, and with keys behind the grid.
struct BrickTiles : pattern::TileCounts {
  double parts = 0;  ///< of tiles, that the 64 rows of a warpgroup see
};

/// The heads, by their windows, where bricks can be tiles: all have nothing but a neighborhood, on
/// one grid of two or three axes, with one dilation of at most kMostBrickDilation. Else empty.
std::vector<BrickHeads> brick_heads(const Pattern& pattern, const Problem& problem);
/// What about the heads or the problem leaves it empty; "" where nothing does.
std::string reason_against_bricks(const Pattern& pattern, const Problem& problem);

BrickTiles count_tiles(std::span<const BrickHeads> heads, const Bricks& bricks, int extra_keys = 0);

/// Likewise of tiles of tokens in a row, estimated from some of the query tiles.
pattern::TileCounts estimate_row_tiles(std::span<const BrickHeads> heads, int block_m, int block_n);

/// The bricks that let query tiles visit the fewest key tiles; of such, parts of 64 rows. None
/// where that is no less than dense attention visits, or no box has so many tokens.
std::optional<Bricks> choose_bricks(std::span<const BrickHeads> heads, int block_m, int block_n);

/// "8x16", without axes that the grid does not have.
std::string to_string(const Neighborhood& neighborhood, GridPoint brick);

}  // namespace girih::plan
