// What the parser and the C++ constructors of masks share: finding atoms by name, their arguments
// as text, the limits of a mask, and the words in which a bad atom is refused.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "girih/pattern.hpp"
#include "girih/shared/atoms.cuh"

namespace girih::pattern {

/// Parentheses and `!` around an atom, in canonical text. Bounds every recursion over a mask.
constexpr int kMaxNesting = 64;
/// Of one mask.
constexpr int kMaxAtoms = 1024;
constexpr std::size_t kMaxTextBytes = 64 * 1024;
constexpr std::size_t kMaxInputName = 64;
/// Of one pattern: the views of all are parameters of the kernel.
constexpr int kMaxInputs = 16;
/// Of a model: keeps tables of them small.
constexpr int kMaxHeads = 1 << 16;

/// Every atom's name, type and numbers, in the order of GIRIH_ATOMS; Mask::atom_index() indexes it.
std::span<const AtomInfo> atom_table();

/// Index into atom_table(), or -1.
int find_atom(std::string_view name);

/// "unknown atom 'widow': did you mean 'window'? ..."
std::string unknown_atom(std::string_view name);

/// "kv" in "q|kv" is choice 1; -1 when it is none of them.
int find_choice(const AtomParam& param, std::string_view word);

/// What an argument looks like, for messages: "a whole number", "true or false", "q or kv".
std::string expected_form(const AtomParam& param);

/// Of an atom's grid; 0 where it has none. `numbers` are all of the atom's.
int num_axes(const AtomInfo& atom, const int* numbers);

/// Makes one number for all axes of the grid, or one for each, what the atom takes. @return why
/// that cannot be, or "".
std::string spread_over_axes(const AtomInfo& atom, const AtomParam& param, int num_axes,
                             std::vector<Number>& numbers);

/// An argument in canonical text, from its numbers: "255", "true", "3..8", "[(4, 1), (inf, 8)]".
std::string argument_text(const AtomParam& param, const int* numbers, int num_axes);

/// Bounds of number i of an argument.
struct Bounds {
  int least;
  int most;
  bool contains(long long value) const { return least <= value && value <= most; }
};
Bounds bounds(const AtomParam& param, int i);

/// "sink needs its number n: sink(n)"
std::string missing(const AtomInfo& atom, const AtomParam& param);

/// "sink: n = -1 is out of range: ..."
std::string out_of_range(const AtomInfo& atom, const AtomParam& param, int i,
                         std::string_view value);

/// Why these numbers are no argument, or "".
std::string argument_problem(const AtomInfo& atom, const AtomParam& param, const int* numbers);

/// Why an atom's arguments cannot stand together, or "".
std::string conflict(int atom_index, const int* numbers);

/// Why the number of a parameter of an atom in the table cannot come from a run-time input
/// (`$name`), or "".
std::string input_problem(const AtomInfo& atom, const AtomParam& param);

/// Why an input cannot be called so, or "".
std::string input_name_problem(std::string_view name);

/// The place of the input that is called so, or -1.
int find_input(std::span<const InputInfo> inputs, std::string_view name);

/// Adds the run-time inputs of a mask that are not there yet, in the order of its text. @return why
/// that cannot be, or "".
std::string add_inputs(const Mask& mask, std::vector<InputInfo>& inputs);
/// The same for what modifiers name.
std::string add_inputs(const Modifiers& modifiers, std::vector<InputInfo>& inputs);

/// Why a pattern cannot be pruned so, or "".
std::string prune_problem(const Prune& prune);

/// "softcap(-1) is out of range: ..."
std::string softcap_out_of_range(std::string_view value);

/// Text from the user as it may stand in a message: short, printable, in quotes.
std::string quote(std::string_view text);

}  // namespace girih::pattern
