// Which tile a bind takes: the caller's, one that was measured, or the plan's own.
#pragma once

#include <string>
#include <vector>

#include "girih/pattern.hpp"
#include "plan/arch.hpp"
#include "runtime/settings.hpp"
#include "tune/tuning_db.hpp"

namespace girih::runtime {

struct TileChoice {
  TileConfig tile;     ///< zeros: the plan chooses
  std::string source;  ///< as KernelInfo::tile_source says it
};

/// Tiles to try, best first: a later one is for where the earlier one's kernel cannot be had, as
/// with compilation off. Needs no GPU, only its name.
std::vector<TileChoice> tile_choices(const Pattern& pattern, const Problem& problem,
                                     const plan::Arch& arch, const tune::DeviceId& device,
                                     const TileConfig& requested, const Settings& settings);

}  // namespace girih::runtime
