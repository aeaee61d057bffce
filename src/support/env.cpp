// The GIRIH_* variables: one table, from which `girih env` and the warnings are made.
#include "support/env.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <numeric>

#include "support/log.hpp"

namespace girih::support {
namespace {

constexpr std::string_view kPrefix = "GIRIH_";

}  // namespace

int edit_distance(std::string_view a, std::string_view b) {
  std::vector<int> row(b.size() + 1);
  std::iota(row.begin(), row.end(), 0);
  for (std::size_t i = 0; i < a.size(); ++i) {
    int diagonal = row[0]++;
    for (std::size_t j = 0; j < b.size(); ++j) {
      const int replaced = diagonal + (a[i] != b[j]);
      diagonal = row[j + 1];
      row[j + 1] = std::min({replaced, row[j] + 1, diagonal + 1});
    }
  }
  return row[b.size()];
}

const std::vector<Variable>& known_variables() {
  static const std::vector<Variable> kVariables = {
      {"GIRIH_LOG", "messages on stderr: off, warn (default), info or debug"},
      {"GIRIH_CACHE_DIR", "folder of cached kernels (default ~/.cache/girih)"},
      {"GIRIH_CACHE_LAYERS", "read-only cache folders to look in after it, separated by ':'"},
      {"GIRIH_JIT", "auto (default) compiles what is not cached; off refuses to"},
      {"GIRIH_TUNE",
       "tiles: db (default) takes measured ones, auto also measures them, off neither"},
      {"GIRIH_CHECK_INPUTS",
       "yes: calls wait and refuse run-time inputs with entries out of range; no (default)"},
      {"GIRIH_NVRTC", "the NVRTC library to use, or its folder"},
      {"GIRIH_TEMPLATE_DIR", "folder whose kernel templates replace the built-in ones"},
      {"GIRIH_DUMP", "folder to which the source and cubin of each kernel are written"},
      {"GIRIH_LIBRARY", "the libgirih.so that girih.py loads"},
  };
  return kVariables;
}

std::optional<std::string> env(std::string_view name) {
  const char* const value = std::getenv(fmt::format("{}{}", kPrefix, name).c_str());
  if (value == nullptr || *value == '\0') return std::nullopt;
  return value;
}

void warn_about_unknown_variables() {
  log_enabled(LogLevel::warn);  // reads GIRIH_LOG, and warns about its value
  for (char** entry = environ; entry != nullptr && *entry != nullptr; ++entry) {
    std::string_view name(*entry);
    name = name.substr(0, name.find('='));
    if (!name.starts_with(kPrefix)) continue;
    const auto distance = [&](const Variable& v) { return edit_distance(name, v.name); };
    const auto& known = known_variables();
    const auto closest = std::min_element(
        known.begin(), known.end(),
        [&](const Variable& a, const Variable& b) { return distance(a) < distance(b); });
    if (closest->name == name) continue;
    log_once(LogLevel::warn, name,
             fmt::format("{} is not a variable that Girih knows; did you mean {}?", name,
                         closest->name));
  }
}

}  // namespace girih::support
