// Run-time inputs of a launch: checked against what the pattern wants, and turned into the views
// that its kernel reads and the work of `girih_build_lists`, `girih_build_numbers`,
// `girih_build_slash` and `girih_build_tiles` that some of them, and expressions, need first.
#pragma once

#include <array>
#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "girih/build_lists.cuh"
#include "girih/build_numbers.cuh"
#include "girih/build_slash.cuh"
#include "girih/build_tiles.cuh"
#include "girih/inputs.hpp"
#include "girih/problem.hpp"
#include "pattern/atoms.hpp"
#include "pattern/places.hpp"
#include "plan/plan.hpp"

namespace girih::runtime {

/// What the inputs are for.
struct InputExtents {
  int num_heads = 0;
  int num_heads_kv = 0;
  int batch = 0;
  int seqlen_q = 0;  ///< of the longest sequence
  int seqlen_k = 0;
  int num_distances = 0;  ///< that a block of 64 queries can have to keys before it
  bool ragged = false;    ///< whether sequences may differ in length or in where they start
};

/// In the order of what the pattern wants; formats text only when it throws.
struct InputPlan {
  std::array<InputView, pattern::kMaxPlaces> views;          ///< the kernel's table
  std::array<BuildListsParams, pattern::kMaxInputs> builds;  ///< of lists and byte masks
  std::array<int, pattern::kMaxInputs> build_input;          ///< which input each is for
  int num_builds = 0;
  /// Of indices of tokens and intervals of columns.
  std::array<BuildNumbersParams, pattern::kMaxInputs> number_builds;
  int num_number_builds = 0;
  std::array<BuildSlashParams, pattern::kMaxInputs> slash_builds;  ///< of columns and slashes
  std::array<int, pattern::kMaxInputs> slash_input;                ///< which input each is for
  int num_slash_builds = 0;
  std::array<BuildTilesParams, pattern::kMaxConditions> tile_builds;  ///< of expressions
  int num_tile_builds = 0;
  std::size_t workspace_bytes = 0;
};

/// Whether there are blocks among the inputs, and the query heads of one KV head see the same.
bool share_blocks(std::span<const Input> inputs, const Problem& problem);

/// The start of a workspace: for each input, how many of its entries were ignored.
constexpr std::size_t kIgnoredCountsBytes = pattern::kMaxInputs * sizeof(int);

/// What a workspace holds before the first input's part.
constexpr std::size_t kWorkspaceHeadBytes = 256;

/// @param workspace where the bits of lists go; may be null when only the size is asked for.
/// @param tiles of the plan.
/// @throws Error invalid_argument naming the input, the value and what it should be.
InputPlan plan_inputs(std::span<const InputInfo> wanted, std::span<const Input> given,
                      const InputExtents& extents, void* workspace,
                      std::span<const plan::ConditionTiles> tiles = {});

/// @param thresholds [heads, num_columns]
/// @throws Error invalid_argument where one is NaN.
void check_thresholds(const std::string& name, std::span<const float> thresholds, int num_columns);

}  // namespace girih::runtime
