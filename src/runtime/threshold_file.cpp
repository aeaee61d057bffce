// The .safetensors files that `girih calibrate` writes: one tensor of thresholds, and metadata that
// say what they are for.
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "girih/error.hpp"
#include "girih/prune.hpp"
#include "girih/shared/prune.cuh"
#include "pattern/atoms.hpp"
#include "support/safetensors.hpp"

namespace girih {
namespace {

[[noreturn]] void refuse(const std::string& path, const std::string& why) {
  throw Error(Errc::invalid_argument, fmt::format("{}: {}", path, why));
}

// Metadata are texts.
int number(const std::string& path, const char* name, const std::string& text) {
  int value = 0;
  const char* const end = text.data() + text.size();
  const auto [after, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc{} || after != end || value < 0 || value > kMaxNumber) {
    refuse(path,
           fmt::format("says {} '{}', which is no number from 0 to {}", name, text, kMaxNumber));
  }
  return value;
}

float scale(const std::string& path, const std::string& text) {
  float value = 0;
  const char* const end = text.data() + text.size();
  const auto [after, error] = std::from_chars(text.data(), end, value);
  if (error != std::errc{} || after != end || !std::isfinite(value) || value < 0) {
    refuse(path,
           fmt::format("says softmax_scale '{}', which must be a finite number, 0 or more", text));
  }
  return value;
}

}  // namespace

Thresholds CalibratedThresholds::on_device(const float* data) const {
  return {.data = data,
          .heads = num_heads,
          .num_columns = num_columns,
          .kv_block_size = kv,
          .softmax_scale = softmax_scale};
}

bool serve_softmax_scale(const Thresholds& thresholds, float softmax_scale) {
  const float own = thresholds.softmax_scale.value_or(softmax_scale);
  return std::abs(own - softmax_scale) <= 1e-3f * std::max(own, softmax_scale);
}

CalibratedThresholds load_thresholds(const std::string& path) {
  const support::SafetensorsFile file(path);
  std::map<std::string, std::string> metadata = file.metadata();
  if (!file.contains("thresholds") || !metadata.contains("kv") || !metadata.contains("rows")) {
    refuse(path, "holds no thresholds of prune: `girih calibrate` writes such files");
  }
  const int rows = number(path, "rows", metadata["rows"]);
  if (rows != kPruneRows) {
    refuse(path,
           fmt::format("holds thresholds for {} rows each: {} are supported", rows, kPruneRows));
  }
  CalibratedThresholds result;
  result.kv = number(path, "kv", metadata["kv"]);
  const std::string problem = pattern::prune_problem({.thresholds = "t", .kv = result.kv});
  if (!problem.empty()) refuse(path, problem);
  if (metadata.contains("head_dim")) {
    result.head_dim = number(path, "head_dim", metadata["head_dim"]);
  }
  if (metadata.contains("softmax_scale")) {
    result.softmax_scale = scale(path, metadata["softmax_scale"]);
  }
  result.pattern = metadata["pattern"];

  const support::SafetensorsFile::Tensor tensor = file.tensor("thresholds", path);
  const std::vector<std::int64_t>& shape = tensor.shape;
  if (tensor.dtype != "F32" || shape.size() != 2) {
    refuse(path, "has thresholds other than float32 [heads, columns]");
  }
  for (const std::int64_t extent : shape) {
    if (extent < 1 || extent > kMaxNumber) {
      refuse(path, fmt::format("has thresholds of {} heads x {} columns: each must be from 1 to {}",
                               shape[0], shape[1], kMaxNumber));
    }
  }
  const std::uint64_t count = static_cast<std::uint64_t>(shape[0] * shape[1]);
  if (tensor.bytes.size() != count * sizeof(float)) {
    refuse(path, fmt::format("has {} bytes of values, not the {} of its shape", tensor.bytes.size(),
                             count * sizeof(float)));
  }
  result.num_heads = static_cast<int>(shape[0]);
  result.num_columns = static_cast<int>(shape[1]);
  result.values.resize(count);
  std::memcpy(result.values.data(), tensor.bytes.data(), tensor.bytes.size());
  for (std::uint64_t i = 0; i < count; ++i) {
    if (!std::isnan(result.values[i])) continue;
    refuse(path, fmt::format("has NaN for head {}, column {}: calibrate again",
                             i / static_cast<std::uint64_t>(shape[1]),
                             i % static_cast<std::uint64_t>(shape[1])));
  }
  return result;
}

}  // namespace girih
