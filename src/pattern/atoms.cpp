// The table of atoms, their arguments as text, and messages about them.
#include "pattern/atoms.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <iterator>
#include <vector>

namespace girih::pattern {
namespace {

#define GIRIH_ATOM_INFO(Atom) Atom::kInfo,
constexpr AtomInfo kAtomTable[] = {GIRIH_ATOMS(GIRIH_ATOM_INFO)};
#undef GIRIH_ATOM_INFO

template <class Atom>
constexpr bool has_conflict = requires(const int* numbers) {
  Atom::conflict(numbers);
};

std::string text_of(const char* reason, const int*) { return reason == nullptr ? "" : reason; }

std::string text_of(const Neighborhood::AxisConflict& found, const int* numbers) {
  if (found.reason == nullptr) return "";
  const int absent = kMaxAxes - num_axes(Neighborhood::kInfo, numbers);
  const auto number = [&](int first) { return numbers[first + found.axis]; };
  return fmt::format("axis {} of the grid has {} tokens, window {}, stride {} and dilation {}: {}",
                     found.axis - absent, number(Neighborhood::kGrid),
                     number(Neighborhood::kWindow), number(Neighborhood::kStride),
                     number(Neighborhood::kDilation), found.reason);
}

template <class Atom>
std::string conflict_of(const int* numbers) {
  if constexpr (has_conflict<Atom>) return text_of(Atom::conflict(numbers), numbers);
  return "";
}
#define GIRIH_ATOM_CONFLICT(Atom) conflict_of<Atom>,
constexpr std::string (*kConflicts[])(const int* numbers) = {GIRIH_ATOMS(GIRIH_ATOM_CONFLICT)};
#undef GIRIH_ATOM_CONFLICT
#define GIRIH_ATOM_HAS_CONFLICT(Atom) has_conflict<Atom>,
constexpr bool kHasConflict[] = {GIRIH_ATOMS(GIRIH_ATOM_HAS_CONFLICT)};
#undef GIRIH_ATOM_HAS_CONFLICT

std::vector<std::string_view> choices(const AtomParam& param) {
  std::vector<std::string_view> result;
  for (std::string_view rest = param.choices;;) {
    const std::size_t bar = rest.find('|');
    result.push_back(rest.substr(0, bar));
    if (bar == std::string_view::npos) return result;
    rest.remove_prefix(bar + 1);
  }
}

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
  return fmt::format("unknown atom {}: {}the atoms are {}, expr", quote(name), hint, known);
}

int find_choice(const AtomParam& param, std::string_view word) {
  const std::vector<std::string_view> words = choices(param);
  const auto found = std::find(words.begin(), words.end(), word);
  return found == words.end() ? -1 : static_cast<int>(found - words.begin());
}

std::string expected_form(const AtomParam& param) {
  switch (param.kind) {
    case ParamKind::integer:
      return "a whole number";
    case ParamKind::boolean:
      return "true or false";
    case ParamKind::choice:
      return fmt::format("{}", fmt::join(choices(param), " or "));
    case ParamKind::range:
      return "a range such as 0..128, whose end is not in it";
    case ParamKind::pair:
      return "a whole number or a pair such as (4, 2)";
    case ParamKind::input:
      return "the name of a run-time input such as m";
    case ParamKind::grid:
      return "a grid of one to three axes such as 30x48x80";
    case ParamKind::axes:
      return "a whole number, or one for each axis such as (18, 24, 24)";
    case ParamKind::flags:
      return "true or false, or one for each axis such as (true, false, false)";
    case ParamKind::pieces:
      break;
  }
  return "a list such as [(4, 1), (inf, 8)]";
}

int num_axes(const AtomInfo& atom, const int* numbers) {
  for (const AtomParam& param : atom.params) {
    if (param.name == nullptr) break;
    if (param.kind == ParamKind::grid) {
      return static_cast<int>(
          std::count_if(numbers, numbers + kMaxAxes, [](int extent) { return extent != 0; }));
    }
    numbers += param.num_numbers();
  }
  return 0;
}

std::string spread_over_axes(const AtomInfo& atom, const AtomParam& param, int num_axes,
                             std::vector<Number>& numbers) {
  if (numbers.size() == 1) numbers.resize(num_axes, numbers.front());
  if (static_cast<int>(numbers.size()) != num_axes) {
    return fmt::format(
        "{}: {} has {} entries, but the grid has {} {}: give one each, or one for all", atom.name,
        param.name, numbers.size(), num_axes, num_axes == 1 ? "axis" : "axes");
  }
  numbers.insert(numbers.begin(), kMaxAxes - num_axes, Number(param.least));
  return "";
}

namespace {

std::string axes_text(const AtomParam& param, const int* numbers, int num_axes) {
  const int* begin = numbers + kMaxAxes - num_axes;
  const int* end = numbers + kMaxAxes;
  if (param.kind == ParamKind::grid) return fmt::format("{}", fmt::join(begin, end, "x"));
  const auto one = [&](int number) {
    return param.kind == ParamKind::axes ? fmt::format("{}", number)
                                         : std::string(number != 0 ? "true" : "false");
  };
  if (std::all_of(begin, end, [&](int number) { return number == *begin; })) return one(*begin);
  std::string text;
  for (const int* next = begin; next != end; ++next) {
    text += (next == begin ? "(" : ", ") + one(*next);
  }
  return text + ')';
}

}  // namespace

std::string argument_text(const AtomParam& param, const int* numbers, int num_axes) {
  switch (param.kind) {
    case ParamKind::integer:
      return fmt::format("{}", numbers[0]);
    case ParamKind::boolean:
      return numbers[0] != 0 ? "true" : "false";
    case ParamKind::choice:
      return std::string(choices(param)[numbers[0]]);
    case ParamKind::range:
      return fmt::format("{}..{}", numbers[0], numbers[1]);
    case ParamKind::pair:
      return numbers[0] == numbers[1] ? fmt::format("{}", numbers[0])
                                      : fmt::format("({}, {})", numbers[0], numbers[1]);
    case ParamKind::grid:
    case ParamKind::axes:
    case ParamKind::flags:
      return axes_text(param, numbers, num_axes);
    case ParamKind::input:
    case ParamKind::pieces:
      break;
  }
  std::string text;
  for (int i = 0;; i += 2) {
    const bool last = numbers[i] == kMaxNumber;
    text += fmt::format("{}({}, {})", i == 0 ? "[" : ", ",
                        last ? "inf" : fmt::format("{}", numbers[i]), numbers[i + 1]);
    if (last) return text + ']';
  }
}

Bounds bounds(const AtomParam& param, int i) {
  switch (param.kind) {
    case ParamKind::boolean:
      return {0, 1};
    case ParamKind::choice:
      return {0, static_cast<int>(choices(param).size()) - 1};
    case ParamKind::pieces:
      if (i % 2 == 0) return {-kMaxNumber / 2, kMaxNumber / 2};  // an end, if not infinite
      break;
    default:
      break;
  }
  return {param.least, param.most};
}

std::string missing(const AtomInfo& atom, const AtomParam& param) {
  if (param.kind == ParamKind::input) {
    return fmt::format("{0} needs the name of a run-time input: {0}(m{1})", atom.name,
                       atom.num_params() > 1 ? ", ..." : "");
  }
  if (param.kind == ParamKind::grid) {
    return fmt::format("{0} needs its grid: {0}(30x48x80, ...)", atom.name);
  }
  if (atom.num_params() > 1) {
    return fmt::format("{} needs {}: give {}=NUMBER", atom.name, param.name, param.name);
  }
  const bool range = param.kind == ParamKind::range;
  return fmt::format("{0} needs its {1} {2}: {0}({3})", atom.name, range ? "range of" : "number",
                     param.name, range ? "0..128" : param.name);
}

std::string out_of_range(const AtomInfo& atom, const AtomParam& param, int i,
                         std::string_view value) {
  const auto [least, most] = bounds(param, i);
  return fmt::format("{}: {} = {} is out of range: {} to {} are allowed", atom.name, param.name,
                     value, least, most);
}

std::string argument_problem(const AtomInfo& atom, const AtomParam& param, const int* numbers) {
  const int count = param.num_numbers();
  const auto is_zero = [](int n) { return n == 0; };
  const auto all_are = [&](int begin, int value) {
    return std::all_of(numbers + begin, numbers + count, [&](int n) { return n == value; });
  };
  if (param.fallback != kRequired && all_are(0, param.fallback)) return "";
  if (param.kind == ParamKind::pieces) {
    for (int i = 0; i < count; i += 2) {
      const int end = numbers[i];
      for (int j : {i, i + 1}) {
        if (bounds(param, j).contains(numbers[j]) || (j == i && end == kMaxNumber)) continue;
        return out_of_range(atom, param, j, fmt::format("{}", numbers[j]));
      }
      if (i > 0 && end <= numbers[i - 2]) {
        return fmt::format("{}: {} must ascend, but {} follows {}", atom.name, param.name, end,
                           numbers[i - 2]);
      }
      if (end != kMaxNumber && (i + 2 == count || all_are(i + 2, 0))) {
        return fmt::format("{}: {} must end with inf, not with {}", atom.name, param.name, end);
      }
      if (end == kMaxNumber) {
        return all_are(i + 2, 0) ? ""
                                 : fmt::format("{}: {} goes on behind inf", atom.name, param.name);
      }
    }
  }
  for (int i = 0; i < count; ++i) {
    if (bounds(param, i).contains(numbers[i])) continue;
    const bool last = i + 1 == count;
    if (param.kind == ParamKind::grid && !last && std::all_of(numbers, numbers + i + 1, is_zero)) {
      continue;  // an axis that is not there
    }
    return out_of_range(atom, param, i, fmt::format("{}", numbers[i]));
  }
  if (param.kind == ParamKind::range && numbers[0] > numbers[1]) {
    return fmt::format("{}: {}..{} is no range: write the lower number first", atom.name,
                       numbers[0], numbers[1]);
  }
  return "";
}

std::string conflict(int atom_index, const int* numbers) {
  const std::string reason = kConflicts[atom_index](numbers);
  return reason.empty() ? "" : fmt::format("{}: {}", kAtomTable[atom_index].name, reason);
}

std::string input_problem(const AtomInfo& atom, const AtomParam& param) {
  if (param.kind == ParamKind::input) {
    return fmt::format("{}: {} is a run-time input by itself: leave out the '$'", atom.name,
                       param.name);
  }
  if (param.kind != ParamKind::integer) {
    return fmt::format("{}: {} takes {}, and no run-time input", atom.name, param.name,
                       expected_form(param));
  }
  // The numbers' places are those of the parameters only where each is one number.
  if (kHasConflict[&atom - kAtomTable] || atom.num_numbers() != atom.num_params()) {
    return fmt::format("{}: {} cannot be a run-time input: its numbers must fit together",
                       atom.name, param.name);
  }
  return "";
}

std::string input_name_problem(std::string_view name) {
  const auto is_letter = [](char c) {
    return ('a' <= c && c <= 'z') || ('A' <= c && c <= 'Z') || c == '_';
  };
  const bool identifier = !name.empty() && is_letter(name.front()) &&
                          std::all_of(name.begin(), name.end(), [&](char c) {
                            return is_letter(c) || ('0' <= c && c <= '9');
                          });
  if (!identifier) {
    return fmt::format("{} is no name of an input: letters, digits and '_' are, a letter first",
                       quote(name));
  }
  if (name.size() > kMaxInputName) {
    return fmt::format("the input's name {} has {} characters: at most {} are allowed", quote(name),
                       name.size(), kMaxInputName);
  }
  return "";
}

std::string prune_problem(const Prune& prune) {
  const std::string problem = input_name_problem(prune.thresholds);
  if (!problem.empty()) return problem;
  if (prune.kv == 64 || prune.kv == 128) return "";
  return fmt::format("prune: kv = {} is not supported: tiles of 64 and 128 keys are", prune.kv);
}

std::string softcap_out_of_range(std::string_view value) {
  return fmt::format("softcap({}) is out of range: a finite number above 0 is needed", value);
}

std::string quote(std::string_view text) {
  constexpr std::size_t kLongest = 40;
  std::string result(text.substr(0, kLongest));
  std::replace_if(
      result.begin(), result.end(), [](char c) { return c < ' ' || c > '~'; }, '?');
  return "'" + result + (text.size() > kLongest ? "...'" : "'");
}

}  // namespace girih::pattern
