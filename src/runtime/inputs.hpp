// Run-time inputs of a launch: checked against what the pattern wants, and turned into the views
// that its kernel reads and the work of `girih_build_lists`, `girih_build_numbers`,
// `girih_build_slash` and `girih_build_tiles` that some of them, and expressions, need first.
#pragma once

#include <array>
#include <cstddef>
#include <optional>
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
  std::optional<float> softmax_scale = {};  ///< of the launch, where that is known
};

/// Up to `kMost` values in place: a launch takes no memory, and what is not there is not written.
template <class Value, std::size_t kMost>
class ShortList {
 public:
  void push_back(const Value& value) { values_[size_++] = value; }
  std::size_t size() const { return size_; }
  bool empty() const { return size_ == 0; }
  Value* begin() { return values_.data(); }
  Value* end() { return begin() + size_; }
  const Value* begin() const { return values_.data(); }
  const Value* end() const { return begin() + size_; }
  const Value& operator[](std::size_t i) const { return values_[i]; }

 private:
  std::array<Value, kMost> values_;
  std::size_t size_ = 0;
};

/// Work of a kernel, and which input it is for.
template <class Params>
struct InputBuild {
  int input;
  Params params;
};

/// In the order of what the pattern wants; formats text only when it throws.
struct InputPlan {
  template <class Params>
  using Builds = ShortList<InputBuild<Params>, pattern::kMaxInputs>;

  std::array<InputView, pattern::kMaxPlaces> views{};  ///< the kernel's table
  Builds<BuildListsParams> lists;                      ///< of lists and byte masks
  Builds<BuildNumbersParams> numbers;                  ///< of indices and intervals of columns
  Builds<BuildSlashParams> slashes;                    ///< of columns and slashes
  ShortList<BuildTilesParams, pattern::kMaxConditions> tiles;  ///< of expressions
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
