// The grids of a pattern's neighborhoods: how long they want sequences to be.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "girih/pattern.hpp"

namespace girih::pattern {

struct Grid {
  std::string text;  ///< "30x48x80"
  int tokens = 0;
  friend bool operator==(const Grid&, const Grid&) = default;
};

/// Those of all its masks, each once.
std::vector<Grid> grids_of(const Pattern& pattern);
std::vector<Grid> grids_of(const Mask& mask);

/// Why sequences of these lengths do not go with the grids, or "".
std::string length_problem(std::span<const Grid> grids, int seqlen_q, int seqlen_k);

}  // namespace girih::pattern
