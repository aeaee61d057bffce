// Kernels of plans, for whatever launches them.
#pragma once

#include <string>

#include "girih/jit.hpp"
#include "plan/plan.hpp"
#include "runtime/cubin.hpp"

namespace girih::jit {

/// Obtains a plan's kernel and loads it in the current context. One of tile maxima writes them
/// where Args::lse points, [batch, num_heads, query tiles, key tiles].
/// @param pattern that the plan is of.
Kernel load_kernel(const Pattern& pattern, const plan::Plan& plan, const Problem& problem,
                   const runtime::Device& device, const runtime::Source& source,
                   std::string tile_source, const runtime::Settings& settings);

/// Launches, with a workspace from the driver's pool where the pattern's inputs need one.
void launch_with_pool(const Pattern& pattern, const Kernel& kernel, const Args& args,
                      Check check = Check::no);

}  // namespace girih::jit
