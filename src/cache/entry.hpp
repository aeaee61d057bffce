// One cache entry: a self-describing file with a cubin in it.
//
//   8 bytes   "GIRIH\0\0\1", the last byte the version of the format
//   16 bytes  XXH3-128 of everything after them, big-endian
//   8 bytes   length of the description, little-endian
//   ...       the description, JSON, padded with spaces to a multiple of 64 in the file
//   ...       the cubin
#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace girih::cache {

struct Entry {
  std::string key;  ///< hex; a file under another name is not used
  std::string arch;
  std::string generator_version;
  std::string pattern;  ///< text of the pattern that first asked for it
  std::string source;   ///< the emitted entry
  std::vector<std::pair<std::string, std::string>> manifest;  ///< template name, digest
  std::vector<std::string> options;
  std::string symbol;
  int registers = 0;
  int spill_bytes = 0;
  int stack_bytes = 0;
  int shared_bytes = 0;  ///< dynamic
  int threads = 0;
  double compile_ms = 0;
  std::string compiler;  ///< "NVRTC 13.0"
  std::string cubin;
  friend bool operator==(const Entry&, const Entry&) = default;
};

std::string serialize(const Entry& entry);

/// @param[out] problem why the bytes are not an entry ("checksum differs", "truncated", ...)
/// @return false then.
bool deserialize(std::string_view bytes, Entry& entry, std::string& problem);

}  // namespace girih::cache
