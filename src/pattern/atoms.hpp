// What the parser and the C++ constructors of masks share: finding atoms by name, the limits of a
// mask, and the words in which a bad atom is refused.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <string_view>

#include "girih/shared/atoms.cuh"

namespace girih::pattern {

/// Parentheses and `!` around an atom, in canonical text. Bounds every recursion over a mask.
constexpr int kMaxNesting = 64;
/// Of one mask: keeps its canonical text below kMaxTextBytes.
constexpr int kMaxAtoms = 1024;
constexpr std::size_t kMaxTextBytes = 64 * 1024;

/// Every atom's name, type and numbers, in the order of GIRIH_ATOMS; Mask::atom_index() indexes it.
std::span<const AtomInfo> atom_table();

/// Index into atom_table(), or -1.
int find_atom(std::string_view name);

/// "unknown atom 'widow': did you mean 'window'? ..."
std::string unknown_atom(std::string_view name);

/// Whether a parameter can be `value`.
bool in_range(const AtomParam& param, long long value);

/// "sink: n = -1 is out of range: ..."
std::string out_of_range(const AtomInfo& atom, const AtomParam& param, std::string_view value);

/// Text from the user as it may stand in a message: short, printable, in quotes.
std::string quote(std::string_view text);

}  // namespace girih::pattern
