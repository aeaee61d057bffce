// The .safetensors files that `girih calibrate` writes: one tensor of thresholds, and metadata that
// say what they are for.
#include <fmt/format.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "girih/error.hpp"
#include "girih/prune.hpp"
#include "girih/shared/prune.cuh"
#include "pattern/atoms.hpp"

namespace girih {
namespace {

static_assert(std::endian::native == std::endian::little, "files are, too");

class ThresholdFile {
 public:
  explicit ThresholdFile(const std::string& path) : path_(path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) refuse("cannot be read");
    bytes_.assign(std::istreambuf_iterator<char>(file), {});
  }

  CalibratedThresholds read() const {
    std::uint64_t length = 0;
    if (bytes_.size() < sizeof(length)) refuse("is no .safetensors file");
    std::memcpy(&length, bytes_.data(), sizeof(length));
    if (length > bytes_.size() - sizeof(length)) refuse("ends in its header");
    const char* const data = bytes_.data() + sizeof(length) + length;
    const std::size_t size = bytes_.size() - sizeof(length) - length;
    try {
      const auto header =
          nlohmann::json::parse(bytes_.data() + sizeof(length), data);  // throws what is caught
      const nlohmann::json none = nlohmann::json::object();
      const nlohmann::json& metadata =
          header.contains("__metadata__") ? header["__metadata__"] : none;
      if (!header.contains("thresholds") || !metadata.contains("kv") ||
          !metadata.contains("rows")) {
        refuse("holds no thresholds of prune: `girih calibrate` writes such files");
      }
      const int rows = number(metadata, "rows");
      if (rows != kPruneRows) {
        refuse(
            fmt::format("holds thresholds for {} rows each: {} are supported", rows, kPruneRows));
      }
      CalibratedThresholds result;
      result.kv = number(metadata, "kv");
      const std::string problem = pattern::prune_problem({.thresholds = "t", .kv = result.kv});
      if (!problem.empty()) refuse(problem);
      if (metadata.contains("head_dim")) result.head_dim = number(metadata, "head_dim");
      result.pattern = metadata.value("pattern", "");

      const nlohmann::json& entry = header["thresholds"];
      const auto shape = entry.at("shape").get<std::vector<std::int64_t>>();
      if (entry.at("dtype") != "F32" || shape.size() != 2) {
        refuse("has thresholds other than float32 [heads, columns]");
      }
      for (const std::int64_t extent : shape) {
        if (extent < 1 || extent > kMaxNumber) {
          refuse(fmt::format("has thresholds of {} heads x {} columns: each must be from 1 to {}",
                             shape[0], shape[1], kMaxNumber));
        }
      }
      const auto begin = entry.at("data_offsets").at(0).get<std::uint64_t>();
      const auto end = entry.at("data_offsets").at(1).get<std::uint64_t>();
      if (begin > end || end > size) refuse("has values beyond the end of the file");
      const std::uint64_t count = static_cast<std::uint64_t>(shape[0] * shape[1]);
      if (end - begin != count * sizeof(float)) {
        refuse(fmt::format("has {} bytes of values, not the {} of its shape", end - begin,
                           count * sizeof(float)));
      }
      result.num_heads = static_cast<int>(shape[0]);
      result.num_columns = static_cast<int>(shape[1]);
      result.values.resize(count);
      std::memcpy(result.values.data(), data + begin, end - begin);
      for (std::uint64_t i = 0; i < count; ++i) {
        if (!std::isnan(result.values[i])) continue;
        refuse(fmt::format("has NaN for head {}, column {}: calibrate again",
                           i / static_cast<std::uint64_t>(shape[1]),
                           i % static_cast<std::uint64_t>(shape[1])));
      }
      return result;
    } catch (const nlohmann::json::exception& error) {
      refuse(fmt::format("has a header that cannot be read: {}", error.what()));
    }
  }

 private:
  [[noreturn]] void refuse(const std::string& why) const {
    throw Error(Errc::invalid_argument, fmt::format("{}: {}", path_, why));
  }

  // Metadata are texts.
  int number(const nlohmann::json& metadata, const char* name) const {
    const auto text = metadata.at(name).get<std::string>();
    int value = 0;
    for (const char digit : text) {
      if (digit < '0' || digit > '9' || value > 100000) value = -1;
      if (value < 0) break;
      value = 10 * value + (digit - '0');
    }
    if (text.empty() || value < 0)
      refuse(fmt::format("says {} '{}', which is no number", name, text));
    return value;
  }

  std::string path_;
  std::string bytes_;
};

}  // namespace

Thresholds CalibratedThresholds::on_device(const float* data) const {
  return {.data = data, .heads = num_heads, .num_columns = num_columns, .kv_block_size = kv};
}

CalibratedThresholds load_thresholds(const std::string& path) { return ThresholdFile(path).read(); }

}  // namespace girih
