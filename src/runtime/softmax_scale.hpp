// What scores are multiplied with: the default, and the form in which kernels take it.
#pragma once

#include <optional>

namespace girih::runtime {

/// The one that was given, or 1 / sqrt(head_dim).
float softmax_scale_of(std::optional<float> given, int head_dim);

/// The same for scores that become powers of two; more than 0, for masked scores are -inf.
/// @throws Error invalid_argument unless it is finite and not negative.
float softmax_scale_log2_of(std::optional<float> given, int head_dim);

}  // namespace girih::runtime
