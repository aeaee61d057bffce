// GIRIH_* environment variables.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace girih::support {

/// The value of GIRIH_<name>; an empty value counts as unset.
std::optional<std::string> env(std::string_view name);

/// Logs one warning, once per process, for every GIRIH_* variable that Girih does not know,
/// naming the closest known one.
void warn_about_unknown_variables();

/// Levenshtein's: insertions, deletions and replacements that turn `a` into `b`.
int edit_distance(std::string_view a, std::string_view b);

struct Variable {
  std::string_view name;  ///< with the prefix
  std::string_view meaning;
};
/// Every variable that Girih reads.
const std::vector<Variable>& known_variables();

}  // namespace girih::support
