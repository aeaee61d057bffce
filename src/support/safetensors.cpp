#include "support/safetensors.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <optional>
#include <system_error>
#include <utility>

#include "girih/error.hpp"
#include "support/fs.hpp"
#include "support/json.hpp"

namespace girih::support {
namespace {

static_assert(std::endian::native == std::endian::little, "files are, too");

constexpr const char* kMetadata = "__metadata__";

[[noreturn]] void refuse(const std::string& source, const std::string& why) {
  throw Error(Errc::invalid_argument, fmt::format("{}: {}", source, why));
}

[[noreturn]] void refuse_header(const std::string& path, const nlohmann::json::exception& error) {
  refuse(path, fmt::format("has a header that cannot be read: {}", message_of(error)));
}

}  // namespace

SafetensorsFile::SafetensorsFile(const std::string& path) : path_(path) {
  std::optional<std::string> bytes = read_file(path, kMaxTensorFileBytes);
  if (!bytes) {
    refuse(path, fmt::format("cannot be read: {}", std::generic_category().message(errno)));
  }
  bytes_ = std::move(*bytes);
  std::uint64_t length = 0;
  if (bytes_.size() < sizeof(length)) refuse(path, "is no .safetensors file");
  std::memcpy(&length, bytes_.data(), sizeof(length));
  if (length > bytes_.size() - sizeof(length)) refuse(path, "ends in its header");
  data_ = sizeof(length) + length;
  try {
    header_ = nlohmann::json::parse(std::string_view(bytes_).substr(sizeof(length), length));
  } catch (const nlohmann::json::exception& error) {
    refuse_header(path, error);
  }
}

std::vector<std::string> SafetensorsFile::names() const {
  std::vector<std::string> names;
  for (const auto& [key, value] : header_.items()) {
    if (key != kMetadata) names.push_back(key);
  }
  return names;
}

bool SafetensorsFile::contains(const std::string& name) const {
  return name != kMetadata && header_.contains(name);
}

SafetensorsFile::Tensor SafetensorsFile::tensor(const std::string& name,
                                                const std::string& source) const {
  try {
    const nlohmann::json& entry = header_.at(name);
    const auto begin = entry.at("data_offsets").at(0).get<std::uint64_t>();
    const auto end = entry.at("data_offsets").at(1).get<std::uint64_t>();
    if (begin > end || end > bytes_.size() - data_) {
      refuse(source, "has values beyond the end of the file");
    }
    return {entry.at("dtype").get<std::string>(),
            entry.at("shape").get<std::vector<std::int64_t>>(),
            std::string_view(bytes_).substr(data_ + begin, end - begin)};
  } catch (const nlohmann::json::exception& error) {
    refuse_header(path_, error);
  }
}

std::map<std::string, std::string> SafetensorsFile::metadata() const {
  if (!header_.contains(kMetadata)) return {};
  try {
    return header_.at(kMetadata).get<std::map<std::string, std::string>>();
  } catch (const nlohmann::json::exception& error) {
    refuse_header(path_, error);
  }
}

}  // namespace girih::support
