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
// With a dilation, rows see tokens of their own residues alone. The tokens that share theirs, a
// dilation group, are a grid in which neighborhoods have no dilation: a brick is of one group, its
// tokens lie `dilation` apart, and the copy engine steps over the others. Groups follow one
// another; tokens are known by their places in the group, and only copies and stores need to know
// better.
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
GIRIH_HD constexpr bool is_inside(GridPoint x, GridPoint box) {
  return x.a < box.a && x.b < box.b && x.c < box.c;
}
// The place of a box's i-th token, brick or dilation group.
GIRIH_HD constexpr GridPoint place_in(GridPoint box, int i) {
  return {i / box.c / box.b, i / box.c % box.b, i % box.c};
}

// Limits. A row's keys on an axis are a word; so are the lines (of the last axis) of a key brick. A
// visit holds a brick's place in one number. Bounds of rows are counted in bits of a brick: an axis
// times a plane's bits fits an int.
constexpr int kMostBrickExtent = 32;
constexpr int kMostBrickLines = 32;
constexpr int kBrickPlaceBits = 10;
constexpr int kMostBricksOnAxis = 1 << kBrickPlaceBits;
constexpr int kMostGridExtent = (1 << 16) - 1;
constexpr int kMostBrickDilation = 8;  // the copy engine's longest step
static_assert(kMostBrickExtent * kMostBrickDilation <= 256, "as far as a box may reach");

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

// How many bricks cover a box.
GIRIH_HD constexpr GridPoint bricks_of(GridPoint box, GridPoint brick) {
  return {ceil_div(box.a, brick.a), ceil_div(box.b, brick.b), ceil_div(box.c, brick.c)};
}

// The tokens of a grid that have one residue on each axis.
struct DilationGroup {
  GridPoint dilation, residue;
  GridPoint extents;  // in places

  // Where in the grid a place is.
  GIRIH_HD constexpr GridPoint token(GridPoint place) const {
    return sum(residue, scaled(place, dilation));
  }
};

struct DilatedGrid {
  GridPoint extents, dilation;

  GIRIH_HD constexpr DilationGroup group(int i) const {
    const GridPoint residue = place_in(dilation, i);
    return {
        dilation, residue,
        bricks_of({extents.a - residue.a, extents.b - residue.b, extents.c - residue.c}, dilation)};
  }
  // Of each group; in all but the first, which is the largest, some may have no token.
  GIRIH_HD constexpr GridPoint bricks_of_group(GridPoint brick) const {
    return bricks_of(group(0).extents, brick);
  }
  GIRIH_HD constexpr int num_bricks(GridPoint brick) const {
    return dilation.volume() * bricks_of_group(brick).volume();
  }
};

GIRIH_HD DilatedGrid grid_of(const Neighborhood& n) {
  return {{n.extent(0), n.extent(1), n.extent(2)}, {n.dilation(0), n.dilation(1), n.dilation(2)}};
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

// On an axis, of the rows [first, first + count) of a group that has `length` places there.
GIRIH_HD void view_axis(const Neighborhood& n, int axis, int length, int first, int count,
                        int key_extent, Span& visible, Span& full) {
  const int last = min(first + count, length) - 1;
  if (first > last) {
    visible = full = {kMaxNumber, 0};
    return;
  }
  const Span hull = n.hull(axis, first, last, length);
  const Span core = n.core(axis, first, last, length);
  visible = {hull.lo / key_extent, ceil_div(hull.hi, key_extent)};
  full = {ceil_div(core.lo, key_extent), core.hi / key_extent};
}

GIRIH_HD BrickView brick_view(const Neighborhood& n, GridPoint extents, GridPoint first,
                              GridPoint box, GridPoint key_brick) {
  BrickView view;
  GIRIH_UNROLLED
  for (int axis = 0; axis < kMaxAxes; ++axis) {
    view_axis(n, axis, extents.on(axis), first.on(axis), box.on(axis), key_brick.on(axis),
              view.visible[axis], view.full[axis]);
  }
  return view;
}

// What a row of a group sees on an axis, in units; a row beyond the group sees everything, for
// nobody looks at it, and masks that hide nothing are not applied.
GIRIH_HD Span row_span(const Neighborhood& n, int axis, int length, int x, int unit) {
  const Span span = x < length ? n.hull(axis, x, x, length) : Span{0, kMostGridExtent};
  return {span.lo * unit, span.hi * unit};
}

// kRun bits at each multiple of kStride, those below kEnd.
template <class Word>
GIRIH_HD constexpr Word runs_of_bits(int run, int stride, int end) {
  Word bits = 0;
  for (int at = 0; at < end; ++at) bits |= Word{at % stride < run} << at;
  return bits;
}
template <class Word, int kRun, int kStride, int kEnd>
constexpr Word kRuns = runs_of_bits<Word>(kRun, kStride, kEnd);

// Pairs of bits at multiples of kStride, a power of two, next to one another; nothing else is set.
template <int kStride, int kEnd, int kRun = 2, class Word>
GIRIH_HD constexpr Word gather_pairs(Word bits) {
  if constexpr (kRun == kStride || kStride >= kEnd) {
    return bits;
  } else {
    return gather_pairs<2 * kStride, kEnd, 2 * kRun>((bits | bits >> (kStride - kRun)) &
                                                     kRuns<Word, 2 * kRun, 2 * kStride, kEnd>);
  }
}

template <bool kWide>
struct WordOf {
  using Type = uint32;
};
template <>
struct WordOf<true> {
  using Type = uint64;
};

// What a row sees of a key brick, as the lane holds its scores: of every eight keys the two from
// 2 * quad on, where quad = lane % 4. Bits 2 * j and 2 * j + 1 are the keys 8 * j + 2 * quad and
// the next. On each axis a row sees a span, and shifts make one of bits, so that coordinates come
// in units: how many bits a plane has, or a line, or a key.
template <class Rows, class Keys>
struct BrickRow {
  static constexpr int kBits = Keys::box().volume() / 4;
  using Word = typename WordOf<(kBits > 32)>::Type;
  static constexpr Word kAll = kRuns<Word, 1, 1, kBits>;

  // Of lines of fewer than eight keys the lane has two keys, or one, of every kSkip-th, and a line
  // is a bit first.
  static constexpr int kSkip = max(8 / Keys::c, 1);
  static constexpr int kLine = max(Keys::c / 4, 1);
  static constexpr int kPlane = Keys::b * kLine;
  static constexpr GridPoint kUnits{kPlane, kLine, 1};

  // From the row's spans and the brick's first token, in units.
  GIRIH_HD static Word seen(Span a, Span b, Span c, GridPoint first, int quad) {
    const Word of_column = inside(c, first.c + 2 * quad % Keys::c);
    if constexpr (kSkip == 1) {
      const Word columns = gather_pairs<8, Keys::c>(of_column & kRuns<Word, 2, 8, Keys::c>);
      return planes(a, first.a) & lines(b, first.b) & columns * kRuns<Word, 1, kLine, kBits>;
    } else {
      constexpr int kKeysOfLine = min(Keys::c, 2);  // that the lane has
      constexpr Word kColumns = kRuns<Word, 1, 1, kKeysOfLine>;
      constexpr Word kOwn = kRuns<Word, 2 / kKeysOfLine, kSkip, Keys::a * Keys::b>;
      // Where planes are whole eights of keys, each of them begins with lines of all lanes.
      constexpr bool kAligned = Keys::b % kSkip == 0;
      const int line = 2 * quad / Keys::c;  // the first of the lane's
      const int ahead = kAligned ? line : 0, behind = kAligned ? 0 : line;
      const Word seen_lines = planes(a, first.a + ahead) & lines(b, first.b + ahead);
      return gather_pairs<kSkip, 32>((seen_lines >> behind & kOwn) * (of_column & kColumns));
    }
  }

  // Of keys in a row, those below a bound.
  GIRIH_HD static Word below(int bound, int quad) {
    const int own = max(bound - 2 * quad, 0);
    return ~from(own / 8 * 2 + min(own % 8, 2)) & kAll;
  }

 private:
  GIRIH_HD static Word planes(Span a, int first) {
    if constexpr (Rows::a == 1 && Keys::a == 1) return ~Word{0};  // or it would not be visited
    return inside(a, first);
  }
  GIRIH_HD static Word lines(Span b, int first) {
    constexpr Word kOfPlane = kRuns<Word, 1, 1, kPlane>;
    constexpr Word kEachPlane = kRuns<Word, 1, kPlane, Keys::a * kPlane>;
    return (inside(b, first) & kOfPlane) * kEachPlane;
  }
  GIRIH_HD static Word inside(Span span, int first) {
    return from(max(span.lo - first, 0)) & ~from(max(span.hi - first, 0));
  }
  // The bits from one on, none behind the last: the GPU's shifts may be that far, those of C++ not.
  GIRIH_HD static Word from(int bit) {
#ifdef __CUDA_ARCH__
    Word bits;
    if constexpr (sizeof(Word) == 4) {
      asm("shl.b32 %0, -1, %1;" : "=r"(bits) : "r"(bit));
    } else {
      asm("shl.b64 %0, -1, %1;" : "=l"(bits) : "r"(bit));
    }
    return bits;
#else
    return bit < static_cast<int>(8 * sizeof(Word)) ? ~Word{0} << bit : 0;
#endif
  }
};

}  // namespace girih
