// What an atom of patterns is: a struct made from its numbers, which lie in the order of
// kInfo.params, with
//   Run seek(geometry, rows, tiles, n)         the run of key tiles that tile n starts; exact
//   uint32 row_bits(geometry, q, key word)     which keys of the word row q sees
// Bases give both, or the seek, from what the atom offers:
//   MonotoneSpan  span(geometry, q)            a row sees one span of keys, which moves on with q
//   WholeRows     rows(geometry)               a row sees everything or nothing
//   KeySearch     next_keys(geometry, rows, k) the seek of anything else
// Numbers that cannot stand together are refused by conflict(numbers), which says why or is null.
// kInfo is all that anything else knows of an atom's arguments. An integer may also be a run-time
// input (`$name`) unless the atom has a conflict(): Leaf (shared/structure.cuh) reads it.
#pragma once

#include "girih/shared/geometry.cuh"

namespace girih {

// How an argument is written, and the numbers it becomes.
enum class ParamKind {
  integer,  // 5
  boolean,  // true: 0 or 1
  choice,   // kv: its index among the choices
  range,    // 3..8: the first, and the end, which is not in it
  pair,     // (4, 2), or 4 for (4, 4)
  pieces,   // [(4, 1), (inf, 8)]: a step function's (end, value), ends ascending to inf
  input,    // m: the slot of the run-time input that the pattern calls so
  grid,     // 30x48x80: an extent for each axis, the last one's tokens are neighbours in memory
  axes,     // (18, 24, 24), one for each axis of the atom's grid, or 18 for all of them
  flags,    // (true, false, false), likewise
};
constexpr int kMaxPieces = 4;

// Of a grid. One with fewer has them last: before them stand extents of 0, in `axes` the least that
// can be given, in `flags` 0.
constexpr int kMaxAxes = 3;

// What an input that is named by itself holds.
enum class InputForm {
  blocks,   // bits of blocks of rows and keys
  indices,  // a number for each query and each key: TokenNumbers, sides 0 and 1, and what rows see
  slashes,  // columns, and windows of keys for each block of query rows: SlashPlane
  columns,  // starts and ends of two intervals for each key: TokenNumbers, sides 0 to 3
};

// As a fallback: the argument must be given; the atom finds the number itself.
constexpr int kRequired = kNoLowerBound;
constexpr int kAutomatic = kNoLowerBound + 1;

struct AtomParam {
  const char* name = nullptr;
  ParamKind kind = ParamKind::integer;
  int least = 0;  // of integers, both numbers of a range or pair, and values of pieces
  int most = kMaxNumber;
  int fallback = kRequired;  // each of its numbers when it is left out; may be out of bounds
  const char* choices = "";  // "q|kv"
  InputForm form = InputForm::blocks;  // of kind input

  GIRIH_HD constexpr int num_numbers() const {
    return kind == ParamKind::pieces                             ? 2 * kMaxPieces
           : kind == ParamKind::range || kind == ParamKind::pair ? 2
           : kind >= ParamKind::grid                             ? kMaxAxes
                                                                 : 1;
  }
};

struct AtomInfo {
  const char* name;  // in pattern text
  const char* type;  // the struct's name, for emitted source
  AtomParam params[10] = {};

  GIRIH_HD constexpr int num_params() const {
    int count = 0;
    for (const AtomParam& param : params) count += param.name != nullptr ? 1 : 0;
    return count;
  }
  GIRIH_HD constexpr int num_numbers() const {
    int count = 0;
    for (const AtomParam& param : params) count += param.name != nullptr ? param.num_numbers() : 0;
    return count;
  }
};

// --- Bases --------------------------------------------------------------------------------------

// A span's bounds never decrease from one row to the next, and it reaches the next row's: together
// the rows of a tile see one interval, and so do all of them in common.
template <class Atom>
struct MonotoneSpan {
  GIRIH_HD Run seek(const Geometry& g, QueryRows rows, KeyTiles tiles, int n) const {
    const Atom& atom = static_cast<const Atom&>(*this);
    const Span first = atom.span(g, rows.begin);
    const Span last = atom.span(g, rows.end - 1);
    return seek_interval({first.lo, last.hi}, {last.lo, first.hi}, tiles, n);
  }
  GIRIH_HD uint32 row_bits(const Geometry& g, int q, KeyWord keys) const {
    return keys.inside(static_cast<const Atom&>(*this).span(g, q), g.seqlen_k);
  }
};

template <class Atom>
struct WholeRows {
  GIRIH_HD Run seek(const Geometry& g, QueryRows rows, KeyTiles tiles, int) const {
    const Span seeing = static_cast<const Atom&>(*this).rows(g);
    const bool none = max(seeing.lo, rows.begin) >= min(seeing.hi, rows.end);
    const bool all = seeing.lo <= rows.begin && rows.end <= seeing.hi;
    return {tiles.count(), none ? TileKind::empty : all ? TileKind::full : TileKind::partial};
  }
  GIRIH_HD uint32 row_bits(const Geometry& g, int q, KeyWord) const {
    return static_cast<const Atom&>(*this).rows(g).contains(q) ? ~0u : 0u;
  }
};

// From key k on, the first that some of the rows see and the first that some of them do not see;
// kNoUpperBound where there is none. May lie beyond the last key.
struct NextKeys {
  int visible;
  int hidden;
};

template <class Atom>
struct KeySearch {
  GIRIH_HD Run seek(const Geometry& g, QueryRows rows, KeyTiles tiles, int n) const {
    const int begin = n * tiles.block_n;
    const int end = min(begin + tiles.block_n, tiles.seqlen_k);
    const NextKeys next = static_cast<const Atom&>(*this).next_keys(g, rows, begin);
    if (next.visible < end && next.hidden < end) return {n + 1, TileKind::partial};
    const bool empty = next.visible >= end;
    const int change = empty ? next.visible : next.hidden;
    return {change < tiles.seqlen_k ? change / tiles.block_n : tiles.count(),
            empty ? TileKind::empty : TileKind::full};
  }
};

}  // namespace girih
