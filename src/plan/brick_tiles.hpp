// The tile that a neighborhood's kernel has, and which bricks of the grid it is.
#pragma once

#include <optional>
#include <span>

#include "girih/problem.hpp"
#include "plan/arch.hpp"
#include "plan/bricks.hpp"
#include "plan/tiles.hpp"

namespace girih::plan {

/// A tile of the Hopper kernel and bricks for it, those that cost least; what was requested of the
/// tile stays. None, and `tile` as it was, where tokens in a row do as well, for other kernels, and
/// for no heads.
std::optional<Bricks> plan_bricks(std::span<const BrickHeads> heads, const Arch& arch,
                                  const Problem& problem, const PatternTraits& traits,
                                  const TileConfig& requested, TileConfig& tile);

/// Whether warpgroups are to pass over key tiles that only others see.
bool passes_over(std::span<const BrickHeads> heads, const Bricks& bricks);

}  // namespace girih::plan
