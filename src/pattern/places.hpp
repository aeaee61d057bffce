// Where the run-time inputs of a pattern lie in the table that kernels read: a place for each in
// their order, two places more for each tensor that expressions index, whose view is larger, and
// one for the tiles of each expression that masks.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "girih/pattern.hpp"
#include "pattern/atoms.hpp"

namespace girih::pattern {

/// Different expressions of one pattern's masks.
constexpr int kMaxConditions = 16;
constexpr int kMaxPlaces = 3 * kMaxInputs + kMaxConditions;

/// Where input i is read.
int place_of(std::span<const InputInfo> inputs, int i);

/// Where the tiles of a condition are read, the i-th of conditions_of.
int place_of_tiles(std::span<const InputInfo> inputs, int i);

int num_places(std::span<const InputInfo> inputs, int num_conditions);

/// The expressions of a pattern's masks, each once, in the order of their first appearance. They
/// live as long as the pattern.
std::vector<const Expression*> conditions_of(const Pattern& pattern);

}  // namespace girih::pattern
