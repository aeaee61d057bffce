// Files: read whole, written so that a reader sees the old bytes or the new ones, never a mixture.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

namespace girih::support {

/// Empty when the file cannot be read.
std::optional<std::string> read_file(const std::filesystem::path& path);

/// Temporary file beside `path`, fsync, rename. The temporary file is removed on failure.
/// @return an empty string, or why it failed ("No space left on device").
std::string write_file_atomically(const std::filesystem::path& path, std::string_view bytes);

}  // namespace girih::support
