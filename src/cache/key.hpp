// A cache key: what a cubin was made from, and nothing about the machine that made it. No path,
// no time, no NVRTC version: an entry made on one machine hits on another.
#pragma once

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

namespace girih::cache {

struct KeyParts {
  std::string generator_version;
  std::string arch;  ///< exact, "sm_90a" is not "sm_90"
  std::string source;
  std::vector<std::pair<std::string, std::string>> manifest;  ///< template name, digest
  std::vector<std::string> options;
};

struct Key {
  std::string arch;
  std::string hex;  ///< 32 digits
  /// <arch>/<2 hex>/<30 hex>.girih, below the folder of the format's version
  std::filesystem::path relative_path() const;
  friend bool operator==(const Key&, const Key&) = default;
};

Key make_key(const KeyParts& parts);

}  // namespace girih::cache
