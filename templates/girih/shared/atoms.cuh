// The atoms of patterns: what each is called, which numbers it takes and which keys a row sees.
// Those of closed form are here. To add one: write the struct (shared/atom.cuh says what it needs),
// add it to GIRIH_ATOMS, test it against a naive predicate.
#pragma once

#include "girih/shared/atom.cuh"
#include "girih/shared/input_atoms.cuh"

namespace girih {

// --- Spans --------------------------------------------------------------------------------------

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
  static constexpr AtomInfo kInfo{"window",
                                  "Window",
                                  {{.name = "left", .least = -1, .fallback = -1},
                                   {.name = "right", .least = -1, .fallback = -1}}};
  int left, right;
  GIRIH_HD explicit Window(const int* numbers) : left(numbers[0]), right(numbers[1]) {}
  GIRIH_HD Span span(const Geometry& g, int q) const {
    const int diagonal = g.diagonal(q);
    return {left < 0 ? kNoLowerBound : diagonal - left,
            right < 0 ? kNoUpperBound : diagonal + right + 1};
  }
};

// k < n, in every row.
struct Sink : MonotoneSpan<Sink> {
  static constexpr AtomInfo kInfo{"sink", "Sink", {{.name = "n"}}};
  int n;
  GIRIH_HD explicit Sink(const int* numbers) : n(numbers[0]) {}
  GIRIH_HD Span span(const Geometry& g, int) const { return {kNoLowerBound, n - g.k_start}; }
};

// The last n keys of the sequence, in every row.
struct LastKeys : MonotoneSpan<LastKeys> {
  static constexpr AtomInfo kInfo{"last_keys", "LastKeys", {{.name = "n"}}};
  int n;
  GIRIH_HD explicit LastKeys(const int* numbers) : n(numbers[0]) {}
  GIRIH_HD Span span(const Geometry& g, int) const { return {g.seqlen_k - n, kNoUpperBound}; }
};

// begin <= k < end, in every row.
struct Keys : MonotoneSpan<Keys> {
  static constexpr AtomInfo kInfo{
      "keys", "Keys", {{.name = "positions", .kind = ParamKind::range}}};
  int begin, end;
  GIRIH_HD explicit Keys(const int* numbers) : begin(numbers[0]), end(numbers[1]) {}
  GIRIH_HD Span span(const Geometry& g, int) const { return {begin - g.k_start, end - g.k_start}; }
};

// p / n == k / n, and nothing where p < 0.
struct Chunk : MonotoneSpan<Chunk> {
  static constexpr AtomInfo kInfo{"chunk", "Chunk", {{.name = "n", .least = 1}}};
  int n;
  GIRIH_HD explicit Chunk(const int* numbers) : n(numbers[0]) {}
  GIRIH_HD Span span(const Geometry& g, int q) const {
    const int p = q + g.q_start;
    if (p < 0) return {-g.k_start, -g.k_start};  // where the first chunk begins, to stay monotone
    const int begin = p - p % n - g.k_start;
    return {begin, begin + n};
  }
};

// p / block - left <= k / block <= p / block + right, rounding down; -1 is unbounded.
struct BlockWindow : MonotoneSpan<BlockWindow> {
  static constexpr AtomInfo kInfo{"block_window",
                                  "BlockWindow",
                                  {{.name = "left", .least = -1, .fallback = -1},
                                   {.name = "right", .least = -1, .fallback = -1},
                                   {.name = "block", .least = 1}}};
  int left, right, block;
  GIRIH_HD explicit BlockWindow(const int* numbers)
      : left(numbers[0]), right(numbers[1]), block(numbers[2]) {}
  GIRIH_HD Span span(const Geometry& g, int q) const {
    const int own = floor_div(q + g.q_start, block);
    return {left < 0 ? kNoLowerBound : block_begin(own - left, block) - g.k_start,
            right < 0 ? kNoUpperBound : block_begin(own + right + 1, block) - g.k_start};
  }
};

// --- Rows ---------------------------------------------------------------------------------------

// q < n: rows of this launch.
struct FirstQueries : WholeRows<FirstQueries> {
  static constexpr AtomInfo kInfo{"first_queries", "FirstQueries", {{.name = "n"}}};
  int n;
  GIRIH_HD explicit FirstQueries(const int* numbers) : n(numbers[0]) {}
  GIRIH_HD Span rows(const Geometry&) const { return {kNoLowerBound, n}; }
};

// q >= seqlen_q - n: rows of this launch.
struct LastQueries : WholeRows<LastQueries> {
  static constexpr AtomInfo kInfo{"last_queries", "LastQueries", {{.name = "n"}}};
  int n;
  GIRIH_HD explicit LastQueries(const int* numbers) : n(numbers[0]) {}
  GIRIH_HD Span rows(const Geometry& g) const { return {g.seqlen_q - n, kNoUpperBound}; }
};

// begin <= p < end
struct Queries : WholeRows<Queries> {
  static constexpr AtomInfo kInfo{
      "queries",
      "Queries",
      {{.name = "positions", .kind = ParamKind::range, .least = -kMaxNumber}}};
  int begin, end;
  GIRIH_HD explicit Queries(const int* numbers) : begin(numbers[0]), end(numbers[1]) {}
  GIRIH_HD Span rows(const Geometry& g) const { return {begin - g.q_start, end - g.q_start}; }
};

// --- Blocks -------------------------------------------------------------------------------------

// The first `sink` blocks of keys and `local` blocks about the row's own, as Block-Sparse-Attention
// has it. Blocks are those of this launch: of q and k, not of positions. With R the number of
// blocks of keys up to the end of the row's block,
//   causal:  k / block < sink, or k / block >= R - local; and k <= p
//            R = q / block + 1 + ceil(offset / block), offset = q_start - k_start, which is
//            seqlen_k - seqlen_q unless a launch moves the diagonal: the local blocks go with it
//   not:     k / block < sink, or k / block >= R - local; R = ceil(seqlen_k / block)
// Causality keeps k / block below R by itself.
struct BlockStreaming : KeySearch<BlockStreaming> {
  static constexpr AtomInfo kInfo{"block_streaming",
                                  "BlockStreaming",
                                  {{.name = "sink"},
                                   {.name = "local"},
                                   {.name = "block", .least = 1, .fallback = 128},
                                   {.name = "causal", .kind = ParamKind::boolean, .fallback = 1}}};
  int sink, local, block;
  bool causal;
  GIRIH_HD explicit BlockStreaming(const int* numbers)
      : sink(numbers[0]), local(numbers[1]), block(numbers[2]), causal(numbers[3] != 0) {}

  GIRIH_HD int local_begin(const Geometry& g, int q) const {
    const int end =
        causal ? q / block + 1 - floor_div(-g.diagonal(0), block) : ceil_div(g.seqlen_k, block);
    return block_begin(end - local, block);
  }

  GIRIH_HD uint32 row_bits(const Geometry& g, int q, KeyWord keys) const {
    const uint32 bits = keys.below(block_begin(sink, block)) | ~keys.below(local_begin(g, q));
    return causal ? bits & keys.below(g.diagonal(q) + 1) : bits;
  }

  GIRIH_HD NextKeys next_keys(const Geometry& g, QueryRows rows, int k) const {
    const int sink_end = block_begin(sink, block);
    const int last_hole_end = local_begin(g, rows.end - 1);
    const int hole = max(k, sink_end);  // rows after the first have the same hole or a longer one
    const int hidden = hole < last_hole_end ? hole : kNoUpperBound;
    if (!causal) {
      return {k < sink_end ? k : max(k, last_hole_end), hidden};
    }
    NextKeys next{kNoUpperBound, min(hidden, max(k, g.diagonal(rows.begin) + 1))};
    const int first_row =
        max(rows.begin, k - g.diagonal(0));  // that sees k if causality alone counts
    if (first_row >= rows.end) return next;
    if (k < sink_end) return {k, next.hidden};
    // Its block's last row sees most of what the block's rows see. Where the local blocks of a
    // whole block begin, its last row stands or is beyond, so that no later block of rows sees
    // less.
    const int last_row = min((first_row / block + 1) * block, rows.end) - 1;
    const int first_key = max(k, local_begin(g, first_row));
    if (first_key <= g.diagonal(last_row)) next.visible = first_key;
    return next;
  }
};

// Blocks at regular distances and a band of blocks about the row's own (S2-Attention). With
// i = p / block and j = k / block, rounding down, a row sees block j where -right < i - j < left,
// or where (j + h * step + offset) % stride == 0, or all in the last dense_heads heads.
//   local      (left, right)
//   h, heads   counts the model's query heads or its key/value heads; homo: h is 0
//   step       by itself max(1, stride / query heads)
//   relative   outside the band, its edge's distance from j must be a multiple of stride
//   ranges     instead of a band: pairs (end, stride); the first with i - j < end decides
struct Strided : KeySearch<Strided> {
  // A block's number, below 2^30, a range's end, an offset and a head's shift, which is below 2^16
  // times a step, or a stride and 2^16 where the step follows from it, fit an int together.
  static constexpr int kMaxStride = 1 << 20, kMaxStep = 1 << 12;
  static constexpr int kMaxBlocks = kMaxNumber / 2;
  static constexpr AtomInfo kInfo{
      "strided",
      "Strided",
      {{.name = "local", .kind = ParamKind::pair, .fallback = -1},
       {.name = "stride", .least = 1, .most = kMaxStride, .fallback = 0},
       {.name = "block", .least = 1},
       {.name = "offset", .least = -kMaxBlocks, .most = kMaxBlocks, .fallback = 0},
       {.name = "heads", .kind = ParamKind::choice, .fallback = 0, .choices = "q|kv"},
       {.name = "step", .least = -kMaxStep, .most = kMaxStep, .fallback = kAutomatic},
       {.name = "homo", .kind = ParamKind::boolean, .fallback = 0},
       {.name = "dense_heads", .fallback = 0},
       {.name = "relative", .kind = ParamKind::boolean, .fallback = 0},
       {.name = "ranges",
        .kind = ParamKind::pieces,
        .least = 1,
        .most = kMaxStride,
        .fallback = 0}}};
  enum Number {
    kLeft,
    kRight,
    kStride,
    kBlock,
    kOffset,
    kHeads,
    kStep,
    kHomo,
    kDenseHeads,
    kRelative,
    kRanges
  };

  const int* numbers;
  GIRIH_HD explicit Strided(const int* list) : numbers(list) {}

  GIRIH_HD static constexpr const char* conflict(const int* n) {
    const bool ranges = n[kRanges + 1] > 0;
    if (ranges && (n[kLeft] >= 0 || n[kStride] > 0)) return "ranges replace local and stride";
    if (ranges && n[kRelative]) return "relative goes with local and stride, not with ranges";
    if (!ranges && n[kLeft] < 0) return "local is missing: give local and stride, or ranges";
    if (!ranges && n[kStride] < 1) return "stride is missing: give local and stride, or ranges";
    if (n[kHomo] && n[kStep] != kAutomatic) return "homo heads are all alike: they have no step";
    if (n[kHomo] && n[kDenseHeads] > 0) return "homo heads are all alike: none can be dense";
    if (!n[kRelative]) return nullptr;
    if (n[kLeft] + n[kRight] == 0) return "relative needs a local block on one side at least";
    if (n[kOffset] != 0 || n[kStep] != kAutomatic || n[kHomo]) {
      return "relative has neither offset nor step nor homo: it does not depend on the head";
    }
    return nullptr;
  }

  GIRIH_HD uint32 row_bits(const Geometry& g, int q, KeyWord keys) const {
    const int block = numbers[kBlock];
    const int i = floor_div(q + g.q_start, block);
    int j = static_cast<uint32>(keys.first_key + g.k_start) / block;
    int end = (j + 1) * block - g.k_start;  // of block j
    uint32 bits = 0;
    for (uint32 earlier = 0; earlier != ~0u; ++j, end += block) {
      const uint32 up_to_end = keys.below(end);
      const Rule rule = this->rule(g, rule_for(i - j));
      const int number = numbers[kRelative] ? i - j : j;
      if (floor_mod(number + rule.shift, rule.stride) == 0) bits |= up_to_end & ~earlier;
      earlier = up_to_end;
    }
    return bits;
  }

  GIRIH_HD NextKeys next_keys(const Geometry& g, QueryRows rows, int k) const {
    const int block = numbers[kBlock];
    const int first_row = floor_div(rows.begin + g.q_start, block);
    const int last_row = floor_div(rows.end - 1 + g.q_start, block);
    const int from = static_cast<uint32>(k + g.k_start) / block;
    Next next{kNoUpperBound, kNoUpperBound};
    int begin = kNoLowerBound;
    for (int index = 0; begin != kNoUpperBound; ++index) {
      const Rule rule = this->rule(g, index);
      if (begin < rule.end) {
        if (numbers[kRelative]) {
          rule.search_diagonals(begin, first_row, last_row, from, next);
        } else {
          rule.search_columns(begin, first_row, last_row, from, next);
        }
        begin = rule.end;
      }
    }
    return {max(k, block_begin(next.visible, block) - g.k_start),
            max(k, block_begin(next.hidden, block) - g.k_start)};
  }

  // Whether the heads of two geometries see the same.
  GIRIH_HD bool same_for_heads(const Geometry& a, const Geometry& b) const {
    for (int index = 0;; ++index) {
      const Rule of_a = rule(a, index), of_b = rule(b, index);
      if (of_a.end != of_b.end || of_a.stride != of_b.stride ||
          floor_mod(of_a.shift - of_b.shift, of_a.stride) != 0) {
        return false;
      }
      if (of_a.end == kNoUpperBound) return true;
    }
  }

 private:
  struct Next {  // blocks of keys
    int visible;
    int hidden;
  };

  // What holds for distances i - j below `end`, from the previous rule's end on: visible where
  // stride divides j + shift, or, under relative, i - j + shift.
  struct Rule {
    int end;
    int stride;
    int shift;

    GIRIH_HD void search_columns(int begin, int first_row, int last_row, int from,
                                 Next& next) const {
      const int lowest = end == kNoUpperBound ? from : max(from, first_row - end + 1);
      const int highest = begin == kNoLowerBound ? kNoUpperBound - 1 : last_row - begin;
      if (lowest > highest) return;
      const int beyond = floor_mod(lowest + shift, stride);
      const int visible = beyond == 0 ? lowest : lowest + stride - beyond;
      const int hidden = beyond == 0 ? lowest + 1 : lowest;
      if (visible <= highest) next.visible = min(next.visible, visible);
      if (stride > 1 && hidden <= highest) next.hidden = min(next.hidden, hidden);
    }

    GIRIH_HD void search_diagonals(int begin, int first_row, int last_row, int from,
                                   Next& next) const {
      const int farthest = min(last_row - from, end - 1);
      if (farthest < begin) return;
      const int beyond = floor_mod(farthest + shift, stride);
      const int visible = farthest - beyond;
      const int hidden = beyond == 0 ? farthest - 1 : farthest;
      if (visible >= begin) next.visible = min(next.visible, max(from, first_row - visible));
      if (stride > 1 && hidden >= begin)
        next.hidden = min(next.hidden, max(from, first_row - hidden));
    }
  };

  GIRIH_HD bool has_ranges() const { return numbers[kRanges + 1] > 0; }

  // Where rules end: the ranges, or what lies ahead of the band, the band, and what lies behind.
  GIRIH_HD int end_of_rule(int index) const {
    if (!has_ranges()) {
      return index == 0 ? 1 - numbers[kRight] : index == 1 ? numbers[kLeft] : kNoUpperBound;
    }
    const int end = numbers[kRanges + 2 * index];
    return end == kMaxNumber ? kNoUpperBound : end;
  }

  GIRIH_HD int rule_for(int distance) const {
    int index = 0;
    while (distance >= end_of_rule(index)) ++index;
    return index;
  }

  GIRIH_HD Rule rule(const Geometry& g, int index) const {
    const bool kv = numbers[kHeads] != 0;
    const int h = numbers[kHomo] ? 0 : kv ? g.head_kv : g.head;
    const int64 queries = kv ? g.group_size : 1;  // query heads to one that is counted
    if ((h + int64{numbers[kDenseHeads]}) * queries >= g.num_heads) return {kNoUpperBound, 1, 0};

    const int end = end_of_rule(index);
    if (!has_ranges() && index == 1) return {end, 1, 0};
    const int stride = has_ranges() ? numbers[kRanges + 2 * index + 1] : numbers[kStride];
    if (numbers[kRelative]) {
      return {end, stride, index == 0 ? numbers[kRight] - 1 : 1 - numbers[kLeft]};
    }
    const int step = numbers[kStep] == kAutomatic ? max(1, stride / g.num_heads) : numbers[kStep];
    return {end, stride, h * step + numbers[kOffset]};
  }
};

// --- Residues -----------------------------------------------------------------------------------

// (p - k) % d == 0
struct Dilated : KeySearch<Dilated> {
  static constexpr AtomInfo kInfo{"dilated", "Dilated", {{.name = "d", .least = 1}}};
  int d;
  GIRIH_HD explicit Dilated(const int* numbers) : d(numbers[0]) {}

  GIRIH_HD NextKeys next_keys(const Geometry& g, QueryRows rows, int k) const {
    const int count = rows.end - rows.begin;
    const int beyond = floor_mod(k - g.diagonal(rows.begin), d);
    const bool all = d == 1 || (count == 1 && beyond == 0);
    return {beyond < count ? k : k + d - beyond, d == 1 ? kNoUpperBound : all ? k + 1 : k};
  }

  GIRIH_HD uint32 row_bits(const Geometry& g, int q, KeyWord keys) const {
    return every(d, floor_mod(g.diagonal(q) - keys.first_key, d));
  }

  // Bits first, first + d, first + 2 * d and so on.
  GIRIH_HD static uint32 every(int d, int first) {
    uint32 bits = first < 32 ? 1u << first : 0u;
    GIRIH_ROLLED
    for (int reach = d; reach < 32; reach *= 2) bits |= bits << reach;
    return bits;
  }
};

// --- Grids --------------------------------------------------------------------------------------

// Neighborhood attention, as NATTEN has it, over the row-major grid of the sequence's own first
// tokens. On each axis a row sees the coordinates of its own residue modulo the dilation that lie
// in a window about its leader, the one for every `stride` of them; a window that would reach
// beyond the axis is moved back into it, and a causal one begins early and ends at the row's own.
// Keys behind the grid are visible to all; rows behind it see nothing else.
struct Neighborhood : KeySearch<Neighborhood> {
  static constexpr AtomInfo kInfo{
      "neighborhood",
      "Neighborhood",
      {{.name = "grid", .kind = ParamKind::grid, .least = 1},
       {.name = "window", .kind = ParamKind::axes, .least = 1},
       {.name = "stride", .kind = ParamKind::axes, .least = 1, .fallback = 1},
       {.name = "dilation", .kind = ParamKind::axes, .least = 1, .fallback = 1},
       {.name = "causal", .kind = ParamKind::flags, .most = 1, .fallback = 0}}};
  enum Number { kGrid = 0, kWindow = 3, kStride = 6, kDilation = 9, kCausal = 12 };

  const int* numbers;
  GIRIH_HD explicit Neighborhood(const int* list) : numbers(list) {}

  struct AxisConflict {
    const char* reason = nullptr;
    int axis = 0;
  };
  GIRIH_HD static constexpr AxisConflict conflict(const int* n) {
    int64 tokens = 1;
    for (int axis = 0; axis < kMaxAxes; ++axis) {
      const int extent = max(n[kGrid + axis], 1);
      const int window = n[kWindow + axis];
      tokens *= extent;
      if (tokens > kMaxNumber) return {"the grid has more than 2^29 tokens", axis};
      if (int64{window} * n[kDilation + axis] > extent) {
        return {"window * dilation must not exceed the axis", axis};
      }
      if (n[kGrid + axis] == 0 && n[kCausal + axis] != 0) {
        return {"an axis that is not there cannot be causal", axis};
      }
      if (n[kStride + axis] > window) return {"stride must not exceed the window", axis};
    }
    return {};
  }

  GIRIH_HD int extent(int axis) const { return max(numbers[kGrid + axis], 1); }
  GIRIH_HD int dilation(int axis) const { return numbers[kDilation + axis]; }
  GIRIH_HD int tokens() const { return extent(0) * extent(1) * extent(2); }

  // Of the `length` places of an axis that share a residue: those that some row sees whose own lies
  // in [first, last], and those that all such rows see.
  GIRIH_HD Span hull(int axis, int first, int last, int length) const {
    return {window_begin(axis, first, length), window_end(axis, last, length)};
  }
  GIRIH_HD Span core(int axis, int first, int last, int length) const {
    return {window_begin(axis, last, length), window_end(axis, first, length)};
  }

  // The keys behind the grid are visible: next keys are searched for within it.
  GIRIH_HD NextKeys next_keys(const Geometry&, QueryRows rows, int k) const {
    const int behind = tokens();
    if (k >= behind) return {k, kNoUpperBound};
    NextKeys next{behind, rows.end > behind ? k : kNoUpperBound};
    if (rows.begin >= behind) return next;

    // The rows as boxes: the rest of a line, lines, planes, lines, the beginning of a line.
    const Point key = point(k);
    const Point last = point(min(rows.end, behind) - 1);
    Point first = point(rows.begin);
    GIRIH_ROLLED
    for (bool more = true; more;) {
      const bool whole_planes = first.a < last.a && first.b == 0 && first.c == 0;
      const bool in_plane = first.a == last.a;
      const bool in_line = in_plane && first.b == last.b;
      const bool whole_lines = first.c == 0 && !in_line;
      more = !in_line;
      const Point end{whole_planes ? last.a - 1 : first.a,
                      !whole_lines ? first.b
                      : in_plane   ? last.b - 1
                                   : extent(1) - 1,
                      in_line ? last.c : extent(2) - 1};
      next.visible = min(next.visible, next_visible(first, end, key));
      next.hidden = min(next.hidden, next_hidden(first, end, key));
      const bool next_plane = end.b == extent(1) - 1;
      first = {next_plane ? end.a + 1 : end.a, next_plane ? 0 : end.b + 1, 0};
    }
    return next;
  }

  GIRIH_HD uint32 row_bits(const Geometry&, int q, KeyWord keys) const {
    const int behind = tokens();
    uint32 bits = ~keys.below(behind);
    if (q >= behind || keys.first_key >= behind) return bits;
    const Point row = point(q);
    Point key = point(keys.first_key);
    // Line by line; lines behind the grid are in no window.
    GIRIH_ROLLED
    for (int line = -key.c; line < 32; line += extent(2)) {  // bits from the word's first key
      uint32 inside = ~0u;
      GIRIH_ROLLED
      for (int axis = 0; axis < kMaxAxes; ++axis) {
        const int own = row.on(axis);
        const int lo = begin(axis, own, own), hi = end(axis, own, own);
        if (axis == kMaxAxes - 1) {
          const KeyWord bit{0};
          inside &= bit.below(line + hi) & ~bit.below(line + lo) &
                    Dilated::every(dilation(axis), residue(axis, line + own));
        } else if (const int x = key.on(axis); x < lo || x >= hi || residue(axis, x - own) != 0) {
          inside = 0;
          break;
        }
      }
      bits |= inside;
      if (++key.b == extent(1)) {
        key.b = 0;
        ++key.a;
      }
    }
    return bits;
  }

 private:
  struct Point {
    int a, b, c;
    GIRIH_HD int on(int axis) const { return axis == 0 ? a : axis == 1 ? b : c; }
  };
  GIRIH_HD Point point(int token) const {
    const int line = quotient(token, extent(2));
    const int a = quotient(line, extent(1));
    return {a, line - a * extent(1), token - line * extent(2)};
  }
  GIRIH_HD int token(int a, int b, int c) const { return (a * extent(1) + b) * extent(2) + c; }

  GIRIH_HD static int quotient(int a, int b) {  // neither is negative
    return static_cast<int>(static_cast<uint32>(a) / static_cast<uint32>(b));
  }
  GIRIH_HD int residue(int axis, int x) const {
    return dilation(axis) == 1 ? 0 : floor_mod(x, dilation(axis));
  }

  // Of a row at `place` among `length` places that share its residue.
  GIRIH_HD int leader(int axis, int place, int length) const {
    const int stride = numbers[kStride + axis];
    if (stride == 1) return place;
    const int within = numbers[kCausal + axis] != 0 ? stride - 1 : stride / 2;
    return min(place - place % stride + within, length - 1);
  }
  // Where its window begins and ends.
  GIRIH_HD int window_begin(int axis, int place, int length) const {
    const int window = numbers[kWindow + axis];
    const int own = leader(axis, place, length);
    return numbers[kCausal + axis] != 0 ? max(own - window + 1, 0)
                                        : min(max(own - window / 2, 0), length - window);
  }
  GIRIH_HD int window_end(int axis, int place, int length) const {
    if (numbers[kCausal + axis] != 0) return place + 1;
    return window_begin(axis, place, length) + numbers[kWindow + axis];
  }

  // Bounds of the coordinates that some row sees whose own lies in [first, last]; where these are
  // two or more and dilated, residues' windows differ a little, and the bounds are not tight.
  GIRIH_HD int begin(int axis, int first, int last) const {
    const int d = dilation(axis);
    if (d == 1) return window_begin(axis, first, extent(axis));
    const int place = quotient(first, d);
    const int own = first == last ? first - place * d : d - 1;
    const int length = quotient(extent(axis) - own + d - 1, d);
    return window_begin(axis, place, length) * d + (first == last ? own : 0);
  }
  GIRIH_HD int end(int axis, int first, int last) const {
    const int d = dilation(axis);
    if (d == 1) return window_end(axis, last, extent(axis));
    const int place = quotient(last, d);
    const int own = first == last ? first - place * d : 0;
    const int length = quotient(extent(axis) - own + d - 1, d);
    const int behind = window_end(axis, place, length) * d;
    return first == last ? behind - d + own + 1 : min(behind, extent(axis));
  }

  // The first coordinate from x on that a row at [first, last] sees, or kNoUpperBound.
  GIRIH_HD int next_on(int axis, int first, int last, int x) const {
    x = max(x, begin(axis, first, last));
    const int beyond = residue(axis, x - first);
    if (beyond > last - first) x += dilation(axis) - beyond;
    return x < end(axis, first, last) ? x : kNoUpperBound;
  }

  // The first key from `key` on that a row of a box sees.
  GIRIH_HD int next_visible(Point first, Point last, Point key) const {
    Point found{};
    bool at_key = true;  // so far
    int from = key.a;
    GIRIH_ROLLED
    for (int axis = 0; axis < kMaxAxes;) {
      const int x = next_on(axis, first.on(axis), last.on(axis), from);
      if (x == kNoUpperBound) {  // on this line or plane: the next
        if (--axis < 0) return kNoUpperBound;
        from = found.on(axis) + 1;
        continue;
      }
      if (axis == 0) found.a = x;
      if (axis == 1) found.b = x;
      if (axis == 2) found.c = x;
      at_key = at_key && x == key.on(axis);
      ++axis;
      from = at_key ? key.on(axis) : 0;
    }
    return token(found.a, found.b, found.c);
  }

  // The first key from `key` on that some row of a box does not see. What dilated rows see in
  // common is taken for nothing.
  GIRIH_HD int next_hidden(Point first, Point last, Point key) const {
    int found = tokens();
    GIRIH_ROLLED
    for (int axis = 0; axis < kMaxAxes; ++axis) {
      const int row = first.on(axis), other = last.on(axis), x = key.on(axis);
      const bool dilated = dilation(axis) > 1;
      const int lo = begin(axis, other, other), hi = end(axis, row, row);
      if (x < lo || x >= hi || residue(axis, x - row) != 0 || (dilated && row != other)) {
        return token(key.a, key.b, key.c);
      }
      if (!dilated && lo == 0 && hi == extent(axis)) continue;
      const int behind = dilated ? x + 1 : hi;
      found = axis == 0   ? token(behind, 0, 0)
              : axis == 1 ? token(key.a, behind, 0)
                          : token(key.a, key.b, behind);
    }
    return found < tokens() ? found : kNoUpperBound;
  }
};

#define GIRIH_ATOMS(X) \
  X(Dense)             \
  X(Causal)            \
  X(Window)            \
  X(Sink)              \
  X(LastKeys)          \
  X(FirstQueries)      \
  X(LastQueries)       \
  X(Queries)           \
  X(Keys)              \
  X(Chunk)             \
  X(BlockWindow)       \
  X(BlockStreaming)    \
  X(Strided)           \
  X(Dilated)           \
  X(Neighborhood)      \
  X(Blocks)            \
  X(Segments)          \
  X(IndexGe)           \
  X(IndexGt)           \
  X(VerticalSlash)     \
  X(Columns)

// An atom from its numbers.
template <class Atom>
GIRIH_HD Atom make_atom(const int* numbers) {
  if constexpr (Atom::kInfo.num_numbers() == 0) {
    return Atom();
  } else {
    return Atom(numbers);
  }
}

}  // namespace girih
