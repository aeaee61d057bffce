// Compiles tiles, checks what they compute and times them in turns. Knows no GPU: what a tile does
// comes from the caller.
#pragma once

#include <functional>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "girih/problem.hpp"

namespace girih::tune {

struct Compiled {
  int spill_bytes = 0;
  int stack_bytes = 0;
};

struct Callbacks {
  /// Called from several threads. Throws what is wrong with the tile.
  std::function<Compiled(const TileConfig&)> compile;
  /// Runs the tile once. @return what is wrong with its output; empty when it is right.
  std::function<std::string(const TileConfig&)> check;
  /// Milliseconds of a few launches.
  std::function<std::vector<double>(const TileConfig&)> measure;
  /// Seconds since some moment. Called from several threads.
  std::function<double()> clock;
};

struct Limits {
  double budget_seconds = 60;  ///< for checking and measuring; compiling comes before
  /// After which no further compilation begins.
  double compile_seconds = std::numeric_limits<double>::infinity();
  int num_threads = 1;  ///< that compile
  int min_repeats = 9;  ///< launches of a tile before it may be left alone
  int max_repeats = 60;
  double settled = 0.02;  ///< (p90 - p10) / median that needs no further launches
  double hopeless = 1.2;  ///< times the fastest median: so slow a tile is left alone, too
};

struct Timing {
  TileConfig tile;
  std::vector<double> ms;  ///< of each launch, sorted; empty: dropped, or out of time
  std::string dropped;     ///< why it is out of the race

  double quantile(double q) const;  ///< of ms, which must not be empty
  double median() const { return quantile(0.5); }
  double spread() const { return (quantile(0.9) - quantile(0.1)) / median(); }
};

struct Outcome {
  std::vector<Timing> timings;  ///< in the candidates' order
  /// Index of the fastest; the first candidate where it is within 1 % of that. -1: none was timed.
  int best = -1;
};

/// Times the candidates in turns, so that a GPU that warms up or slows down treats all alike, until
/// each has settled or the budget is used up. A tile that does not compile, spills or computes
/// something wrong is dropped.
Outcome tune(std::span<const TileConfig> candidates, const Callbacks& callbacks,
             const Limits& limits);

}  // namespace girih::tune
