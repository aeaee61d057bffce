// Which tile a bind takes: the caller's, one that was measured, or the plan's own.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "girih/pattern.hpp"
#include "plan/arch.hpp"
#include "runtime/settings.hpp"
#include "tune/tuning_db.hpp"

namespace girih::runtime {

/// For whom a tile is chosen. Needs no GPU, only its name.
struct TileQuery {
  const Pattern& pattern;
  const Problem& problem;
  const plan::Arch& arch;
  const tune::DeviceId& device;
  std::optional<tune::Bucket> bucket = {};  ///< of the launches to come, where that is known
};

struct TileChoice {
  TileConfig tile;                          ///< zeros: the plan chooses
  std::string source;                       ///< as KernelInfo::tile_source says it
  std::optional<tune::Record> record = {};  ///< where the tile is one that was measured
  bool exact = false;                       ///< on this GPU and for the bucket asked for
};

/// Tiles to try, best first: a later one is for where the earlier one's kernel cannot be had, as
/// with compilation off.
std::vector<TileChoice> tile_choices(const TileQuery& query, const TileConfig& requested,
                                     const Settings& settings);

}  // namespace girih::runtime
