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

/// Depends on the spec alone.
std::string emit(const plan::KernelSpec& spec);

}  // namespace girih::codegen
