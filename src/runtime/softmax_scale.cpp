#include "runtime/softmax_scale.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "runtime/tensors.hpp"

namespace girih::runtime {

float softmax_scale_of(std::optional<float> given, int head_dim) {
  return given.value_or(static_cast<float>(1.0 / std::sqrt(static_cast<double>(head_dim))));
}

float softmax_scale_log2_of(std::optional<float> given, int head_dim) {
  constexpr double kLog2E = 1.4426950408889634;
  const float scale = softmax_scale_of(given, head_dim);
  if (!std::isfinite(scale) || scale < 0.0f) {
    refuse(fmt::format("softmax_scale {} must be finite and not negative", scale));
  }
  // Masked scores are -inf: a factor of zero would make them NaN.
  return std::clamp(static_cast<float>(scale * kLog2E), 1e-30f, 1e30f);
}

}  // namespace girih::runtime
