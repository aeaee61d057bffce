// The generator: a kernel spec becomes a short CUDA source that includes a template.
#pragma once

#include <string>

#include "plan/plan.hpp"

namespace girih::codegen {

/// The kernel's name in every entry.
inline constexpr const char* kKernelSymbol = "girih_fwd";

/// The kernel beside it that prepares run-time lists, in entries of patterns that have some.
inline constexpr const char* kBuildListsSymbol = "girih_build_lists";
inline constexpr const char* kBuildNumbersSymbol = "girih_build_numbers";
inline constexpr const char* kBuildSlashSymbol = "girih_build_slash";
inline constexpr const char* kBuildTilesSymbol = "girih_build_tiles";

/// Those that plan which query tiles are split, and merge their parts.
inline constexpr const char* kPlanSplitsSymbol = "girih_plan_splits";
inline constexpr const char* kMergeSplitsSymbol = "girih_merge_splits";

/// The one kernel of merging partial results.
inline constexpr const char* kCombineSymbol = "girih_combine";

/// The two of estimating columns and slashes.
inline constexpr const char* kEstimateSymbol = "girih_estimate_slash";
inline constexpr const char* kSelectSymbol = "girih_select_largest";

/// Likewise of blocks.
inline constexpr const char* kPoolBlocksSymbol = "girih_pool_blocks";
inline constexpr const char* kEstimateBlocksSymbol = "girih_estimate_blocks";

/// Depends on the spec alone.
std::string emit(const plan::KernelSpec& spec);

/// The entry that merges partial results: the same for all types, widths and layouts.
std::string emit_combine(const plan::Arch& arch);

/// The entry that estimates columns and slashes: the same for all layouts.
std::string emit_estimate(const plan::Arch& arch, DType dtype, int head_dim);

/// The entry that estimates blocks: the same for all layouts, blocks and strides.
std::string emit_estimate_blocks(const plan::Arch& arch, DType dtype, int head_dim, int num_stages);

}  // namespace girih::codegen
