#include "runtime/settings.hpp"

#include <fmt/format.h>

#include <string>
#include <string_view>
#include <vector>

#include "girih/error.hpp"
#include "support/env.hpp"

namespace girih::runtime {
namespace {

std::optional<std::filesystem::path> path_setting(
    const std::optional<std::filesystem::path>& option, std::string_view variable) {
  if (option) return option;
  if (const auto value = support::env(variable)) return *value;
  return std::nullopt;
}

jit::Mode mode_setting(const std::optional<jit::Mode>& option) {
  if (option) return *option;
  const std::string value = support::env("JIT").value_or("auto");
  if (value == "auto") return jit::Mode::automatic;
  if (value == "off") return jit::Mode::off;
  throw Error(Errc::invalid_argument, fmt::format("GIRIH_JIT={} is neither auto nor off", value));
}

jit::Tune tune_setting(const std::optional<jit::Tune>& option) {
  if (option) return *option;
  const std::string value = support::env("TUNE").value_or("db");
  if (value == "db") return jit::Tune::db;
  if (value == "off") return jit::Tune::off;
  if (value == "auto") return jit::Tune::automatic;
  throw Error(Errc::invalid_argument,
              fmt::format("GIRIH_TUNE={} is not known: db, auto and off are", value));
}

}  // namespace

jit::Check check_setting(const std::optional<jit::Check>& option) {
  if (option) return *option;
  const std::string value = support::env("CHECK_INPUTS").value_or("no");
  if (value == "no") return jit::Check::no;
  if (value == "yes") return jit::Check::yes;
  throw Error(Errc::invalid_argument,
              fmt::format("GIRIH_CHECK_INPUTS={} is neither no nor yes", value));
}

std::vector<std::filesystem::path> split_paths(std::string_view text) {
  std::vector<std::filesystem::path> paths;
  while (!text.empty()) {
    const size_t colon = std::min(text.find(':'), text.size());
    if (colon > 0) paths.emplace_back(text.substr(0, colon));
    text.remove_prefix(std::min(colon + 1, text.size()));
  }
  return paths;
}

Settings resolve(const jit::Options& options) {
  support::warn_about_unknown_variables();
  Settings settings;
  settings.mode = mode_setting(options.mode);
  settings.tune = tune_setting(options.tune);
  if (const auto directory = path_setting(options.cache_dir, "CACHE_DIR")) {
    settings.cache.directory = *directory;
  } else {
    settings.cache.directory = cache::default_directory();
    settings.cache.directory_is_default = true;
  }
  settings.cache.layers = options.cache_layers
                              ? *options.cache_layers
                              : split_paths(support::env("CACHE_LAYERS").value_or(""));
  settings.nvrtc = path_setting(options.nvrtc, "NVRTC");
  settings.template_dir = path_setting(options.template_dir, "TEMPLATE_DIR");
  settings.dump_dir = path_setting(options.dump_dir, "DUMP");
  return settings;
}

}  // namespace girih::runtime
