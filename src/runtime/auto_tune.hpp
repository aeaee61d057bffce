// Tune::automatic: times tiles for the lengths of one launch, with the caller's inputs and on the
// caller's stream, into outputs and a workspace of its own.
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

/// A program's kernel with a tile. Called from several threads, each with the caller's context
/// current.
using MakeKernel = std::function<jit::Kernel(const TileConfig&)>;

/// Times the tiles that fit and puts the times on record. One whose output differs from that of the
/// plan's own is left out.
/// @return the fastest; empty, after a warning, where there is no memory for outputs, and where
/// none could be timed.
std::optional<TileConfig> measure_tiles(const TileQuery& query, const jit::Args& args,
                                        const tune::Shape& shape, const MakeKernel& make_kernel,
                                        const Settings& settings);

}  // namespace girih::runtime
