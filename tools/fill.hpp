// Random data for a pattern's run-time inputs, as `--fill` describes it.
#pragma once

#include <optional>

#include "common.hpp"
#include "verify/inputs.hpp"

namespace girih::tools {

/// --fill and --seed, as they were given.
struct FillOptions {
  std::vector<std::string> fills;  ///< NAME=VALUE and ",KEY=...": see the option's help
  std::uint64_t seed = 1;
  std::optional<float> softmax_scale = {};  ///< of the launches to come, where there are any
  bool has_head_dim = true;  ///< as the Problem says, which a file's thresholds must be for
};
void add_fill_options(CLI::App& verb, FillOptions& options);

/// Data for every input of the pattern, in the order of Pattern::inputs().
/// @throws Error invalid_argument for a fill that cannot be read, names no input of the pattern or
/// names one twice, and for an input without one.
std::vector<verify::InputData> read_fills(const FillOptions& options, const Pattern& pattern,
                                          const Problem& problem, int batch, int seqlen_q,
                                          int seqlen_k);

}  // namespace girih::tools
