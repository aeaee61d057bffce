// Files: read whole, written so that a reader sees the old bytes or the new ones, never a mixture.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>

namespace girih::support {

/// No file of ours comes near this, examples of Q and K apart; a damaged or foreign one must not
/// fill the memory.
inline constexpr long kMaxFileBytes = 256L << 20;

/// Empty, with errno set, when the file cannot be read, or is larger than `most_bytes`. Devices and
/// pipes, which do not say how much they hold, are never read beyond kMaxFileBytes.
std::optional<std::string> read_file(const std::filesystem::path& path,
                                     long most_bytes = kMaxFileBytes);

/// From the descriptor's position to the end, in the same way.
std::optional<std::string> read_all(int fd, long most_bytes = kMaxFileBytes);

/// Temporary file beside `path`, fsync, rename. The temporary file is removed on failure. A
/// symbolic link is replaced; a device or a pipe is written to in place.
/// @return an empty string, or why it failed ("No space left on device").
std::string write_file_atomically(const std::filesystem::path& path, std::string_view bytes);

/// Appends whole lines, each ended by a line break, under an exclusive lock and by one write, so
/// that neither readers nor other writers see half of them; what a failed write left is cut off
/// again. An empty file gets `header`, a line too, first; a torn last line is ended before. Folders
/// that are missing are made for this user alone.
/// @return an empty string, or why it failed.
std::string append_lines(const std::filesystem::path& path, std::string_view header,
                         std::string_view lines);

/// What the names of temporary files begin with. One stays behind where a writer is killed.
inline constexpr std::string_view kTemporaryPrefix = ".girih-tmp-";

}  // namespace girih::support
