// Tiles: what they cost, which fit, the one that is used unless somebody asks for another, and
// those worth measuring.
#pragma once

#include <string>
#include <vector>

#include "girih/problem.hpp"
#include "plan/arch.hpp"
#include "plan/plan.hpp"

namespace girih::plan {

/// Which kernel a complete tile is for.
KernelFamily family_of(const TileConfig& tile);

/// Dynamic shared memory of a CTA.
int shared_bytes(const TileConfig& tile, const Problem& problem);

/// How many warps the registers of a multiprocessor should hold.
int warps_per_sm(const TileConfig& tile, const Problem& problem);

/// The tile that is used: what was requested, its zeros filled in by measured experience. It is the
/// Hopper kernel's where that runs and can have what was requested.
TileConfig choose_tile(const Arch& arch, const Problem& problem, const PatternTraits& pattern,
                       const TileConfig& requested = {});

/// Why no kernel has this tile; empty when one has.
std::vector<std::string> reasons_against(const TileConfig& tile, const Problem& problem,
                                         const Arch& arch);

/// Why neither kernel has what was requested, where `tile`, which choose_tile made of it, has
/// reasons against it: the reasons of each by itself, where the Hopper kernel may run too.
std::vector<std::string> reasons_against_request(const TileConfig& requested,
                                                 const TileConfig& tile, const Problem& problem,
                                                 const PatternTraits& pattern, const Arch& arch);

/// Tiles for a tuner to measure: `first`, the plan's own, then every other that fits, in ascending
/// order.
std::vector<TileConfig> candidate_tiles(const TileConfig& first, const Problem& problem,
                                        const Arch& arch);
/// Those among them that suit a plan's pattern, too.
std::vector<TileConfig> candidate_tiles(const Plan& plan, const Problem& problem, const Arch& arch);

/// Why heads cannot be pruned with this tile.
std::vector<std::string> reasons_against_prune(const TileConfig& tile, int prune_kv);

}  // namespace girih::plan
