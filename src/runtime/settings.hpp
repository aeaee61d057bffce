// Options and environment variables, resolved once: what was asked for in the program wins.
#pragma once

#include <filesystem>
#include <optional>
#include <string_view>
#include <vector>

#include "cache/disk_cache.hpp"
#include "girih/jit.hpp"

namespace girih::runtime {

struct Settings {
  jit::Mode mode = jit::Mode::automatic;
  jit::Tune tune = jit::Tune::db;
  cache::DiskCacheOptions cache;
  std::optional<std::filesystem::path> nvrtc;
  std::optional<std::filesystem::path> template_dir;
  std::optional<std::filesystem::path> dump_dir;
};

/// "a:b" -> a, b, without empty ones.
std::vector<std::filesystem::path> split_paths(std::string_view text);

/// @throws Error invalid_argument when GIRIH_CHECK_INPUTS has a value that is not known.
jit::Check check_setting(const std::optional<jit::Check>& option);

/// @throws Error invalid_argument when GIRIH_JIT or GIRIH_TUNE has a value that is not known.
Settings resolve(const jit::Options& options);

}  // namespace girih::runtime
