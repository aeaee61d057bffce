// Tiles of the Hopper kernel: what they cost, which fit, and which are worth having.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "plan/tiles.hpp"

namespace girih::plan {

/// Whether consumer warpgroups have the same rows of different query heads.
bool packs_heads(const Problem& problem, const PatternTraits& pattern, int block_m);

/// Whether all rows of a tile see the same blocks of a run-time mask.
bool shares_blocks(const Problem& problem, const PatternTraits& pattern, int block_m);

/// Head dims above leave the Hopper kernel no registers for what only pays.
constexpr int kWidestWithSpareRegisters = 192;

/// Whether heads of vertical_slash alone visit gathered keys: not where shared memory has no room.
bool gathers(const TileConfig& tile, const Problem& problem, const PatternTraits& pattern,
             const Arch& arch);

/// Keys that are copied together, by whose visibility a key tile is gathered; block_n where tiles
/// are of consecutive keys.
int key_box(const TileConfig& tile, const Problem& problem, const PatternTraits& pattern,
            const Arch& arch);

int shared_bytes_sm90(const TileConfig& tile, const Problem& problem);

/// Empty where the kernel cannot have what was requested, unless num_q_stages was: only this kernel
/// has that, and what is wrong with the rest is to be said.
std::optional<TileConfig> choose_tile_sm90(const Arch& arch, const Problem& problem,
                                           const PatternTraits& pattern,
                                           const TileConfig& requested);

std::vector<std::string> reasons_against_sm90(const TileConfig& tile, const Problem& problem,
                                              const Arch& arch);

/// Whether the registers of consumers suffice beside such a pattern: else they spill, or wgmma is
/// serialised.
bool has_registers(const TileConfig& tile, const Problem& problem, const PatternTraits& pattern);

/// Those worth measuring.
std::vector<TileConfig> candidates_sm90(const Problem& problem, const Arch& arch);

}  // namespace girih::plan
