// Plans, by a pattern's text.
#pragma once

#include <string>

#include "girih/pattern.hpp"
#include "girih/problem.hpp"
#include "plan/plan.hpp"

namespace girih::tests {

inline plan::Plan plan_for(const std::string& pattern, const Problem& problem = {},
                           const std::string& arch = "sm_90", const TileConfig& tile = {}) {
  return plan::make_plan(Pattern::parse(pattern), problem, plan::Arch::parse(arch), tile);
}

}  // namespace girih::tests
