// The generator: a kernel spec becomes a short CUDA source that includes a template.
#pragma once

#include <string>

#include "plan/plan.hpp"

namespace girih::codegen {

/// The kernel's name in every entry.
inline constexpr const char* kKernelSymbol = "girih_fwd";

/// Depends on the spec alone.
std::string emit(const plan::KernelSpec& spec);

}  // namespace girih::codegen
