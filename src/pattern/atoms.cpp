// The table of atoms, and messages about atoms.
#include "pattern/atoms.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <vector>

namespace girih::pattern {
namespace {

#define GIRIH_ATOM_INFO(Atom) Atom::kInfo,
constexpr AtomInfo kAtomTable[] = {GIRIH_ATOMS(GIRIH_ATOM_INFO)};
#undef GIRIH_ATOM_INFO

// Levenshtein's: single characters inserted, removed or replaced.
std::size_t edit_distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (std::size_t i = 0; i < a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i + 1;
    for (std::size_t j = 0; j < b.size(); ++j) {
      const std::size_t replaced = diagonal + (a[i] == b[j] ? 0 : 1);
      diagonal = row[j + 1];
      row[j + 1] = std::min({replaced, diagonal + 1, row[j] + 1});
    }
  }
  return row[b.size()];
}

}  // namespace

std::span<const AtomInfo> atom_table() { return kAtomTable; }

int find_atom(std::string_view name) {
  const auto found = std::find_if(std::begin(kAtomTable), std::end(kAtomTable),
                                  [&](const AtomInfo& atom) { return name == atom.name; });
  return found == std::end(kAtomTable) ? -1 : static_cast<int>(found - std::begin(kAtomTable));
}

std::string unknown_atom(std::string_view name) {
  std::string known, closest;
  std::size_t least = 3;  // a name further away than two characters is no slip of the keyboard
  for (const AtomInfo& atom : kAtomTable) {
    known += (known.empty() ? "" : ", ") + std::string(atom.name);
    if (name.size() > 32) continue;
    const std::size_t distance = edit_distance(name, atom.name);
    if (distance < least) {
      least = distance;
      closest = atom.name;
    }
  }
  const std::string hint = closest.empty() ? "" : fmt::format("did you mean '{}'? ", closest);
  return fmt::format("unknown atom {}: {}the atoms are {}", quote(name), hint, known);
}

bool in_range(const AtomParam& param, long long value) {
  return param.least <= value && value <= kMaxNumber;
}

std::string out_of_range(const AtomInfo& atom, const AtomParam& param, std::string_view value) {
  return fmt::format("{}: {} = {} is out of range: {} to {} are allowed", atom.name, param.name,
                     value, param.least, kMaxNumber);
}

std::string quote(std::string_view text) {
  constexpr std::size_t kLongest = 40;
  std::string result(text.substr(0, kLongest));
  std::replace_if(
      result.begin(), result.end(), [](char c) { return c < ' ' || c > '~'; }, '?');
  return "'" + result + (text.size() > kLongest ? "...'" : "'");
}

}  // namespace girih::pattern
