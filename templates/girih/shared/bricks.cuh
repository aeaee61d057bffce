// Bricks: boxes of tokens that stand for tiles where a kernel's only mask are neighborhoods on one
// grid. A tile of consecutive tokens is a few thin lines of the grid, whose rows' windows together
// are much larger than one; a brick sees little more than each of its rows does.
//
// Tensors stay as they are, in row-major order. The copy engine takes a brick for a box of a tensor
// of five dimensions: columns, the grid's axes from the last to the first, batch. Row r of a tile
// in shared memory is the brick's token r, its last axis going fastest, and whoever multiplies or
// sums up need not know. Of dimension 0 a head's columns are a part, which begins at head * stride:
// a sixth dimension does not exist. The grid need not be a multiple of a brick: tokens beyond its
// end arrive as zeros, no row sees them, and as rows they are not written.
//
// Per axis, rows that follow one another see windows that do not go back, so that what a box of
// rows sees, and what all of its rows see, is a box of keys, and so is either in whole bricks.
#pragma once

#include "girih/shared/atoms.cuh"

namespace girih {

// Of tokens or bricks: a place in the grid, or how many on each axis.
struct GridPoint {
  int a, b, c;
  GIRIH_HD constexpr int on(int axis) const { return axis == 0 ? a : axis == 1 ? b : c; }
  GIRIH_HD constexpr int volume() const { return a * b * c; }
  GIRIH_HD friend constexpr bool operator==(const GridPoint&, const GridPoint&) = default;
};

GIRIH_HD constexpr GridPoint scaled(GridPoint x, GridPoint y) {
  return {x.a * y.a, x.b * y.b, x.c * y.c};
}
GIRIH_HD constexpr GridPoint sum(GridPoint x, GridPoint y) {
  return {x.a + y.a, x.b + y.b, x.c + y.c};
}
// The place of a box's i-th token, or brick.
GIRIH_HD constexpr GridPoint place_in(GridPoint box, int i) {
  return {i / box.c / box.b, i / box.c % box.b, i % box.c};
}

// Limits. A row's keys on an axis are a word; so are the lines (of the last axis) of a key brick. A
// visit holds a brick's place in one number, a row's bounds on an axis are two of 16 bits.
constexpr int kMostBrickExtent = 32;
constexpr int kMostBrickLines = 32;
constexpr int kBrickPlaceBits = 10;
constexpr int kMostBricksOnAxis = 1 << kBrickPlaceBits;
constexpr int kMostGridExtent = (1 << 16) - 1;

GIRIH_HD constexpr int pack_place(GridPoint brick) {
  return brick.a << (2 * kBrickPlaceBits) | brick.b << kBrickPlaceBits | brick.c;
}
GIRIH_HD constexpr GridPoint unpack_place(int place) {
  constexpr int kMask = kMostBricksOnAxis - 1;
  return {place >> (2 * kBrickPlaceBits), place >> kBrickPlaceBits & kMask, place & kMask};
}

GIRIH_HD constexpr bool is_power_of_two(int n) { return n > 0 && (n & (n - 1)) == 0; }

// Whether a box can be a query brick, whose parts of 64 rows are boxes of their own, or a key
// brick, of whose lines a word holds a whole number.
GIRIH_HD constexpr bool is_brick(GridPoint box) {
  return is_power_of_two(box.c) && max(max(box.a, box.b), box.c) <= kMostBrickExtent;
}
constexpr int kBrickPartRows = 64;
GIRIH_HD constexpr bool is_query_brick(GridPoint box) {
  if (!is_brick(box) || box.volume() % kBrickPartRows != 0) return false;
  const int lines = kBrickPartRows / box.c;
  return lines % box.b == 0 ? box.a % (lines / box.b) == 0 : box.b % lines == 0;
}
GIRIH_HD constexpr bool is_key_brick(GridPoint box) {
  return is_brick(box) && box.a * box.b <= kMostBrickLines;
}
GIRIH_HD constexpr GridPoint part_of(GridPoint query_brick) {
  const int lines = kBrickPartRows / query_brick.c;
  if (lines % query_brick.b == 0) return {lines / query_brick.b, query_brick.b, query_brick.c};
  return {1, lines, query_brick.c};
}

// A brick that a kernel is compiled for.
template <int kA, int kB, int kC>
struct BrickOf {
  static constexpr int a = kA, b = kB, c = kC;
  GIRIH_HD static constexpr GridPoint box() { return {kA, kB, kC}; }
};

GIRIH_HD GridPoint grid_of(const Neighborhood& n) {
  return {n.extent(0), n.extent(1), n.extent(2)};
}

// How many bricks cover a grid.
GIRIH_HD constexpr GridPoint bricks_of(GridPoint grid, GridPoint brick) {
  return {ceil_div(grid.a, brick.a), ceil_div(grid.b, brick.b), ceil_div(grid.c, brick.c)};
}

// The key bricks that the rows of a box see some of, and those that they see all of: spans of
// bricks on each axis. A box without rows sees none.
struct BrickView {
  Span visible[kMaxAxes];
  Span full[kMaxAxes];

  GIRIH_HD bool sees(GridPoint brick) const { return holds(visible, brick); }
  GIRIH_HD bool sees_all_of(GridPoint brick) const { return holds(full, brick); }

 private:
  GIRIH_HD static bool holds(const Span (&spans)[kMaxAxes], GridPoint brick) {
    return spans[0].contains(brick.a) && spans[1].contains(brick.b) && spans[2].contains(brick.c);
  }
};

// On an axis, of the rows [first, first + count) that the grid has.
GIRIH_HD void view_axis(const Neighborhood& n, int axis, int first, int count, int key_extent,
                        Span& visible, Span& full) {
  const int last = min(first + count, n.extent(axis)) - 1;
  if (first > last) {
    visible = full = {kMaxNumber, 0};
    return;
  }
  const Span hull = n.hull(axis, first, last), core = n.core(axis, first, last);
  visible = {hull.lo / key_extent, ceil_div(hull.hi, key_extent)};
  full = {ceil_div(core.lo, key_extent), core.hi / key_extent};
}

GIRIH_HD BrickView brick_view(const Neighborhood& n, GridPoint first, GridPoint box,
                              GridPoint key_brick) {
  BrickView view;
  GIRIH_UNROLLED
  for (int axis = 0; axis < kMaxAxes; ++axis) {
    view_axis(n, axis, first.on(axis), box.on(axis), key_brick.on(axis), view.visible[axis],
              view.full[axis]);
  }
  return view;
}

// What a row sees on an axis in one number; a row beyond the grid sees everything, for nobody looks
// at it, and masks that hide nothing are not applied.
GIRIH_HD uint32 pack_row_span(const Neighborhood& n, int axis, int x) {
  if (x >= n.extent(axis)) return ~0u << 16;
  const Span span = n.hull(axis, x, x);
  return static_cast<uint32>(span.lo) | static_cast<uint32>(span.hi) << 16;
}

// Which keys of a brick a row sees, as words: bit i of word w is the brick's token 32 * w + i.
template <class Keys>
struct BrickRow {
  static constexpr int kLinesPerWord = 32 / Keys::c;
  uint32 lines;   // those in which it sees something; bit i is line i
  uint32 column;  // and what in each of them

  // From the row's packed spans, and the brick's first token.
  GIRIH_HD BrickRow(uint32 a, uint32 b, uint32 c, GridPoint first) : lines(0) {
    const uint32 planes = inside(a, first.a), in_plane = inside(b, first.b) & mask_of(Keys::b);
    column = inside(c, first.c) & mask_of(Keys::c);
    GIRIH_UNROLLED
    for (int i = 0; i < Keys::a; ++i) lines |= ((planes >> i & 1) * in_plane) << (i * Keys::b);
  }

  GIRIH_HD uint32 word(int w) const {
    uint32 bits = lines >> (w * kLinesPerWord) & mask_of(kLinesPerWord);
    // One bit for each line, spread to its first: halves, quarters and so on move apart.
    GIRIH_UNROLLED
    for (int group = kLinesPerWord / 2; group > 0; group /= 2) {
      bits = (bits | bits << (group * (Keys::c - 1))) & groups_of(group);
    }
    return bits * column;
  }

 private:
  GIRIH_HD static constexpr uint32 mask_of(int bits) { return bits >= 32 ? ~0u : (1u << bits) - 1; }
  GIRIH_HD static constexpr uint32 groups_of(int group) {
    uint32 bits = 0;
    for (int at = 0; at < 32; at += group * Keys::c) bits |= mask_of(group) << at;
    return bits;
  }
  GIRIH_HD static uint32 inside(uint32 span, int first) {
    const KeyWord word{first};
    return word.below(static_cast<int>(span >> 16)) & ~word.below(static_cast<int>(span & 0xffff));
  }
};

}  // namespace girih
