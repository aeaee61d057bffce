// Tune::automatic: times tiles for the lengths of one launch, with the caller's inputs and on the
// caller's stream, into outputs of its own.
#pragma once

#include <functional>
#include <optional>

#include "girih/jit.hpp"
#include "runtime/settings.hpp"
#include "runtime/tile_choice.hpp"
#include "tune/tuning_db.hpp"

namespace girih::runtime {

/// The lengths by which launches share a measured tile.
tune::Shape shape_of(const jit::Args& args, const Problem& problem);

/// What a program does with a tile.
struct TileUse {
  /// Called from several threads, each with the caller's context current.
  std::function<jit::Kernel(const TileConfig&)> make_kernel;
  std::function<void(const jit::Kernel&, const jit::Args&)> launch;
};

/// Times the tiles that fit and puts the times on record. One whose output differs from that of the
/// plan's own is left out.
/// @return the fastest; empty, after a warning, where there is no memory for outputs, and where
/// none could be timed.
std::optional<TileConfig> measure_tiles(const TileQuery& query, const jit::Args& args,
                                        const tune::Shape& shape, const TileUse& use,
                                        const Settings& settings);

}  // namespace girih::runtime
