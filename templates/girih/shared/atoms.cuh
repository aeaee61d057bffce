// The atoms of patterns: what each is called, which numbers it takes and which keys a row sees.
//
// An atom is a struct whose members are its numbers, in the order of kInfo.params, with
//   Span span(geometry, q)               the keys that row q sees
//   Run seek(geometry, rows, tiles, n)   the run of key tiles that tile n starts
// Where span's bounds never decrease from one row to the next and a row's span reaches the next
// row's, seek follows from the first and the last row: such atoms derive from MonotoneSpan.
// To add an atom: write the struct, add it to GIRIH_ATOMS, test it against a naive predicate.
#pragma once

#include "girih/shared/geometry.cuh"

namespace girih {

struct AtomParam {
  const char* name;
  int least;  // smallest allowed; the largest is kMaxNumber
  bool required;
  int fallback;  // when it is left out
};

struct AtomInfo {
  const char* name;  // in pattern text
  const char* type;  // the struct's name, for emitted source
  int num_params = 0;
  AtomParam params[4] = {};
};

template <class Atom>
struct MonotoneSpan {
  GIRIH_HD Run seek(const Geometry& g, QueryRows rows, KeyTiles tiles, int n) const {
    const Atom& atom = static_cast<const Atom&>(*this);
    const Span first = atom.span(g, rows.begin);
    const Span last = atom.span(g, rows.end - 1);
    return seek_interval({first.lo, last.hi}, {last.lo, first.hi}, tiles, n);
  }
};

// Every key.
struct Dense : MonotoneSpan<Dense> {
  static constexpr AtomInfo kInfo{"dense", "Dense"};
  GIRIH_HD Span span(const Geometry&, int) const { return kEveryKey; }
};

// k <= p
struct Causal : MonotoneSpan<Causal> {
  static constexpr AtomInfo kInfo{"causal", "Causal"};
  GIRIH_HD Span span(const Geometry& g, int q) const { return {kNoLowerBound, g.diagonal(q) + 1}; }
};

// p - left <= k <= p + right; -1 is unbounded on that side.
struct Window : MonotoneSpan<Window> {
  static constexpr AtomInfo kInfo{
      "window", "Window", 2, {{"left", -1, false, -1}, {"right", -1, false, -1}}};
  int left, right;
  GIRIH_HD Window(int l, int r) : left(l), right(r) {}
  GIRIH_HD Span span(const Geometry& g, int q) const {
    const int diagonal = g.diagonal(q);
    return {left < 0 ? kNoLowerBound : diagonal - left,
            right < 0 ? kNoUpperBound : diagonal + right + 1};
  }
};

// k < n, in every row.
struct Sink : MonotoneSpan<Sink> {
  static constexpr AtomInfo kInfo{"sink", "Sink", 1, {{"n", 0, true, 0}}};
  int n;
  GIRIH_HD explicit Sink(int count) : n(count) {}
  GIRIH_HD Span span(const Geometry& g, int) const { return {kNoLowerBound, n - g.k_start}; }
};

#define GIRIH_ATOMS(X) X(Dense) X(Causal) X(Window) X(Sink)

// An atom from its numbers.
template <class Atom>
GIRIH_HD Atom make_atom(const int* numbers) {
  if constexpr (Atom::kInfo.num_params == 0) return Atom();
  if constexpr (Atom::kInfo.num_params == 1) return Atom(numbers[0]);
  if constexpr (Atom::kInfo.num_params == 2) return Atom(numbers[0], numbers[1]);
}

}  // namespace girih
