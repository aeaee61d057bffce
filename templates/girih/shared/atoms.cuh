// The atoms of patterns: what each is called, which numbers it takes and which keys a row sees.
//
// An atom is a struct made from its numbers, which lie in the order of kInfo.params, with
//   Run seek(geometry, rows, tiles, n)         the run of key tiles that tile n starts; exact
//   uint32 row_bits(geometry, q, key word)     which keys of the word row q sees
// Bases give both, or the seek, from what the atom offers:
//   MonotoneSpan  span(geometry, q)            a row sees one span of keys, which moves on with q
//   WholeRows     rows(geometry)               a row sees everything or nothing
//   KeySearch     next_keys(geometry, rows, k) the seek of anything else
// Numbers that cannot stand together are refused by conflict(numbers), which says why or is null.
// kInfo is all that anything else knows of an atom's arguments. An integer may also be a run-time
// input (`$name`) unless the atom has a conflict(): Leaf (shared/structure.cuh) reads it.
// To add an atom: write the struct, add it to GIRIH_ATOMS, test it against a naive predicate.
#pragma once

#include "girih/shared/geometry.cuh"
#include "girih/shared/slash.cuh"
#include "girih/shared/token_numbers.cuh"

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
  GIRIH_HD int tokens() const { return extent(0) * extent(1) * extent(2); }

  // Of an axis without dilation: the coordinates that some row sees whose own lies in
  // [first, last], and those that all such rows see.
  GIRIH_HD Span hull(int axis, int first, int last) const {
    return {window_begin(axis, first, extent(axis)), window_end(axis, last, extent(axis))};
  }
  GIRIH_HD Span core(int axis, int first, int last) const {
    return {window_begin(axis, last, extent(axis)), window_end(axis, first, extent(axis))};
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
                    Dilated::every(numbers[kDilation + axis], residue(axis, line + own));
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
    const int dilation = numbers[kDilation + axis];
    return dilation == 1 ? 0 : floor_mod(x, dilation);
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
    const int dilation = numbers[kDilation + axis];
    if (dilation == 1) return window_begin(axis, first, extent(axis));
    const int place = quotient(first, dilation);
    const int own = first == last ? first - place * dilation : dilation - 1;
    const int length = quotient(extent(axis) - own + dilation - 1, dilation);
    return window_begin(axis, place, length) * dilation + (first == last ? own : 0);
  }
  GIRIH_HD int end(int axis, int first, int last) const {
    const int dilation = numbers[kDilation + axis];
    if (dilation == 1) return window_end(axis, last, extent(axis));
    const int place = quotient(last, dilation);
    const int own = first == last ? first - place * dilation : 0;
    const int length = quotient(extent(axis) - own + dilation - 1, dilation);
    const int behind = window_end(axis, place, length) * dilation;
    return first == last ? behind - dilation + own + 1 : min(behind, extent(axis));
  }

  // The first coordinate from x on that a row at [first, last] sees, or kNoUpperBound.
  GIRIH_HD int next_on(int axis, int first, int last, int x) const {
    x = max(x, begin(axis, first, last));
    const int beyond = residue(axis, x - first);
    if (beyond > last - first) x += numbers[kDilation + axis] - beyond;
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
      const bool dilated = numbers[kDilation + axis] > 1;
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

// --- Run-time data ------------------------------------------------------------------------------

// The bit of a block mask that the row's and the key's block have. Blocks are those of the
// sequence's own rows and keys, wherever a launch puts them.
struct Blocks : KeySearch<Blocks> {
  static constexpr AtomInfo kInfo{"blocks",
                                  "Blocks",
                                  {{.name = "input", .kind = ParamKind::input},
                                   {.name = "q", .least = 16, .most = 128},
                                   {.name = "kv", .least = 16, .most = 128}}};
  int slot, q_block, kv_block;
  GIRIH_HD explicit Blocks(const int* numbers)
      : slot(numbers[0]), q_block(numbers[1]), kv_block(numbers[2]) {}

  GIRIH_HD static constexpr const char* conflict(const int* numbers) {
    const int q = numbers[1], kv = numbers[2];
    const bool powers_of_2 = (q & (q - 1)) == 0 && (kv & (kv - 1)) == 0;
    return powers_of_2 ? nullptr : "q and kv must be 16, 32, 64 or 128";
  }

  GIRIH_HD bool same_for_heads(const Geometry& a, const Geometry& b) const {
    return a.inputs[slot].plane(a.batch, a.local_head) ==
           b.inputs[slot].plane(b.batch, b.local_head);
  }

  GIRIH_HD BitRows bit_rows(const Geometry& g, QueryRows rows) const {
    const InputView& view = g.inputs[slot];
    const int first = rows.begin / q_block;
    const int last = (rows.end - 1) / q_block;
    return {view.plane(g.batch, g.local_head) + int64{first} * view.row_stride, view.row_stride,
            last - first + 1, ceil_div(g.seqlen_k, kv_block)};
  }

  GIRIH_HD NextKeys next_keys(const Geometry& g, QueryRows rows, int k) const {
    const BitRows::Next next = bit_rows(g, rows).next(k / kv_block);
    return {next.set == BitRows::kNone ? kNoUpperBound : max(k, next.set * kv_block),
            next.clear == BitRows::kNone ? kNoUpperBound : max(k, next.clear * kv_block)};
  }

  GIRIH_HD uint32 row_bits(const Geometry& g, int q, KeyWord keys) const {
    if (q >= g.seqlen_q) return 0;  // there is no such row of bits
    const BitRows row = bit_rows(g, {q, q + 1});
    uint32 bits = 0;
    GIRIH_ROLLED
    for (int k = keys.first_key; k < min(keys.first_key + 32, g.seqlen_k);) {
      const int column = k / kv_block;
      const int end = (column + 1) * kv_block;
      if (row.contains(column)) bits |= keys.below(end) & ~keys.below(k);
      k = end;
    }
    return bits;
  }
};

// A row and a key have a number each, and the two decide. An atom says so for one of each,
// sees(q, k), and for ranges of both, kind(q, k), which may say partial where it does not know.
template <class Atom>
struct ComparesNumbers {
  int slot;

  GIRIH_HD bool same_for_heads(const Geometry& a, const Geometry& b) const {
    return a.inputs[slot].plane(a.batch, a.local_head) ==
           b.inputs[slot].plane(b.batch, b.local_head);
  }

  // How many spans of keys a seek looks at where intervals do not say what is seen.
  static constexpr int kMostSpans = 8;

  GIRIH_HD Run seek(const Geometry& g, QueryRows rows, KeyTiles tiles, int n) const {
    static_assert(Atom::kComparison < TokenNumbers::kNumComparisons);
    const TokenNumbers queries = TokenNumbers::of(g, slot, 0);
    const SeenKeys seen = queries.seen(Atom::kComparison, rows.begin, rows.end);
    const Run run = seek_interval(seen.hull, seen.core, tiles, n);
    if (run.kind != TileKind::partial || seen.is_exact()) return run;

    const NumberRange own = queries.range(rows.begin, rows.end);
    const TokenNumbers keys = TokenNumbers::of(g, slot, 1);
    int end = (n + 1) * tiles.block_n;
    const TileKind kind = Atom::kind(own, keys.range(n * tiles.block_n, min(end, tiles.seqlen_k)));
    if (kind == TileKind::partial) return {n + 1, kind};
    GIRIH_ROLLED
    for (int i = 0; i < kMostSpans && end < tiles.seqlen_k; ++i) {
      const int span = end / TokenNumbers::kSpan;
      if (Atom::kind(own, keys.range_of_span(span)) != kind) break;
      end = (span + 1) * TokenNumbers::kSpan;
    }
    return {end < tiles.seqlen_k ? end / tiles.block_n : tiles.count(), kind};
  }

  GIRIH_HD uint32 row_bits(const Geometry& g, int q, KeyWord word) const {
    if (q >= g.seqlen_q || word.first_key >= g.seqlen_k) return 0;  // there are no such numbers
    const TokenNumbers queries = TokenNumbers::of(g, slot, 0);
    const Span interval = queries.interval(Atom::kComparison, q);
    if (interval.lo <= interval.hi) return word.inside(interval, g.seqlen_k);
    const int own = queries.numbers[q];
    const TokenNumbers keys = TokenNumbers::of(g, slot, 1);
    uint32 bits = 0;
    GIRIH_ROLLED
    for (int i = 28; i >= 0; i -= 4) {  // behind the last key lies something, too
      const TokenNumbers::Four four = keys.four(word.first_key + i);
      for (int j = 3; j >= 0; --j) bits = bits << 1 | (Atom::sees(own, four.of[j]) ? 1u : 0u);
    }
    return bits;
  }
};

// The row's number is the key's: documents packed in a sequence.
struct Segments : ComparesNumbers<Segments> {
  static constexpr int kComparison = 0;
  static constexpr AtomInfo kInfo{
      "segments",
      "Segments",
      {{.name = "input", .kind = ParamKind::input, .form = InputForm::indices}}};
  GIRIH_HD explicit Segments(const int* numbers) : ComparesNumbers{numbers[0]} {}

  GIRIH_HD static TileKind kind(NumberRange q, NumberRange k) {
    if (q.most < k.least || k.most < q.least) return TileKind::empty;
    const bool single = q.least == q.most && k.least == k.most;
    return single ? TileKind::full : TileKind::partial;
  }
  GIRIH_HD static bool sees(int q, int k) { return q == k; }
};

// The row's number is at least the key's: what is causal in an order of the tokens' own.
struct IndexGe : ComparesNumbers<IndexGe> {
  static constexpr int kComparison = 1;
  static constexpr AtomInfo kInfo{
      "index_ge",
      "IndexGe",
      {{.name = "input", .kind = ParamKind::input, .form = InputForm::indices}}};
  GIRIH_HD explicit IndexGe(const int* numbers) : ComparesNumbers{numbers[0]} {}

  GIRIH_HD static TileKind kind(NumberRange q, NumberRange k) {
    if (q.most < k.least) return TileKind::empty;
    return q.least >= k.most ? TileKind::full : TileKind::partial;
  }
  GIRIH_HD static bool sees(int q, int k) { return q >= k; }
};

// The row's number is greater than the key's.
struct IndexGt : ComparesNumbers<IndexGt> {
  static constexpr int kComparison = 2;
  static constexpr AtomInfo kInfo{
      "index_gt",
      "IndexGt",
      {{.name = "input", .kind = ParamKind::input, .form = InputForm::indices}}};
  GIRIH_HD explicit IndexGt(const int* numbers) : ComparesNumbers{numbers[0]} {}

  GIRIH_HD static TileKind kind(NumberRange q, NumberRange k) {
    if (q.most <= k.least) return TileKind::empty;
    return q.least > k.most ? TileKind::full : TileKind::partial;
  }
  GIRIH_HD static bool sees(int q, int k) { return q > k; }
};

// Keys up to the row's own that are in a column, or in a window that some distances from key to row
// become for the row's block of 64 (MInference's vertical-slash). Columns are keys of the
// sequence, rows are counted from its own first one, wherever a launch puts them.
struct VerticalSlash : KeySearch<VerticalSlash> {
  static constexpr AtomInfo kInfo{
      "vertical_slash",
      "VerticalSlash",
      {{.name = "input", .kind = ParamKind::input, .form = InputForm::slashes}}};
  int slot;
  GIRIH_HD explicit VerticalSlash(const int* numbers) : slot(numbers[0]) {}

  GIRIH_HD bool same_for_heads(const Geometry& a, const Geometry& b) const {
    return a.inputs[slot].plane(a.batch, a.local_head) ==
           b.inputs[slot].plane(b.batch, b.local_head);
  }

  // Words that one search looks at: where nothing was found in them, what comes next may be called
  // both visible and hidden. No tile has so many keys.
  static constexpr int kMostWords = 16;

  GIRIH_HD NextKeys next_keys(const Geometry& g, QueryRows rows, int k) const {
    const SlashPlane plane = SlashPlane::of(g, slot);
    const int first = rows.begin / SlashPlane::kRows;
    const int last = (rows.end - 1) / SlashPlane::kRows;
    const int end = min(g.seqlen_k, g.diagonal(rows.end - 1) + 1);  // nobody sees it
    NextKeys next{kNoUpperBound, max(k, g.diagonal(rows.begin) + 1)};
    uint32 ahead = ~0u << k % 32;
    GIRIH_ROLLED
    for (int w = k / 32; 32 * w < end; ++w, ahead = ~0u) {
      if (w - k / 32 == kMostWords) {
        next = {min(next.visible, 32 * w), min(next.hidden, 32 * w)};
        break;
      }
      uint32 any = 0, all = ~0u;
      GIRIH_ROLLED
      for (int block = first; block <= last; ++block) {
        const uint32 word = plane.windows(block)[w];
        any |= word;
        all &= word;
      }
      const uint32 column = plane.columns[w];
      const uint32 visible = (any | column) & ahead;
      const uint32 hidden = ~(all | column) & ahead;
      if (next.visible == kNoUpperBound && visible != 0)
        next.visible = 32 * w + lowest_bit(visible);
      if (hidden != 0) next.hidden = min(next.hidden, 32 * w + lowest_bit(hidden));
      if (next.visible != kNoUpperBound && next.hidden < 32 * (w + 1)) break;
    }
    if (next.visible >= end) next.visible = kNoUpperBound;
    return next;
  }

  GIRIH_HD uint32 row_bits(const Geometry& g, int q, KeyWord keys) const {
    if (q >= g.seqlen_q || keys.first_key >= g.seqlen_k) return 0;  // there are no such words
    const SlashPlane plane = SlashPlane::of(g, slot);
    const uint32* windows = plane.windows(q / SlashPlane::kRows);
    const int word = keys.first_key / 32, shift = keys.first_key % 32;
    uint32 bits = (plane.columns[word] | windows[word]) >> shift;
    if (shift != 0) bits |= (plane.columns[word + 1] | windows[word + 1]) << (32 - shift);
    return bits & keys.below(g.diagonal(q) + 1);
  }
};

// start[k] <= q < end[k], for one of a key's two intervals; an interval that ends before it starts
// is empty. Rows are those of the sequence itself.
struct Columns {
  static constexpr int kSides = 4;  // start, end, start, end
  static constexpr AtomInfo kInfo{
      "columns",
      "Columns",
      {{.name = "input", .kind = ParamKind::input, .form = InputForm::columns}}};
  int slot;
  GIRIH_HD explicit Columns(const int* numbers) : slot(numbers[0]) {}

  GIRIH_HD bool same_for_heads(const Geometry& a, const Geometry& b) const {
    return a.inputs[slot].plane(a.batch, a.local_head) ==
           b.inputs[slot].plane(b.batch, b.local_head);
  }

  // What rows see of keys whose intervals start and end within these ranges.
  GIRIH_HD static TileKind kind(QueryRows rows, NumberRange start, NumberRange end) {
    if (rows.end <= start.least || rows.begin >= end.most) return TileKind::empty;
    const bool all = rows.begin >= start.most && rows.end <= end.least;
    return all ? TileKind::full : TileKind::partial;
  }

  // The stronger of what both intervals show of the keys whose ranges range_of(side) gives.
  template <class RangeOf>
  GIRIH_HD static TileKind either(QueryRows rows, const RangeOf& range_of) {
    TileKind found = TileKind::empty;
    GIRIH_ROLLED
    for (int side = 0; side < kSides; side += 2) {
      const TileKind kind_of_one = kind(rows, range_of(side), range_of(side + 1));
      if (found < kind_of_one) found = kind_of_one;
    }
    return found;
  }

  // How many spans of keys one seek looks at.
  static constexpr int kMostSpans = 32;

  GIRIH_HD Run seek(const Geometry& g, QueryRows rows, KeyTiles tiles, int n) const {
    int end = (n + 1) * tiles.block_n;
    const TileKind found = either(rows, [&](int side) {
      return TokenNumbers::of(g, slot, side).range(n * tiles.block_n, min(end, tiles.seqlen_k));
    });
    if (found == TileKind::partial) return {n + 1, found};
    GIRIH_ROLLED
    for (int i = 0; i < kMostSpans && end < tiles.seqlen_k; ++i) {
      const int span = end / TokenNumbers::kSpan;
      const TileKind of_span = either(
          rows, [&](int side) { return TokenNumbers::of(g, slot, side).range_of_span(span); });
      if (of_span != found) break;
      end = (span + 1) * TokenNumbers::kSpan;
    }
    return {end < tiles.seqlen_k ? end / tiles.block_n : tiles.count(), found};
  }

  GIRIH_HD uint32 row_bits(const Geometry& g, int q, KeyWord word) const {
    const int begin = word.first_key;
    const int end = min(begin + 32, g.seqlen_k);
    if (q >= g.seqlen_q || begin >= end) return 0;  // there are no such intervals
    uint32 bits = 0;  // ranges of words would cost wide heads registers that they do not have
    GIRIH_ROLLED
    for (int side = 0; side < kSides; side += 2) {
      const TokenNumbers starts = TokenNumbers::of(g, slot, side);
      const TokenNumbers ends = TokenNumbers::of(g, slot, side + 1);
      GIRIH_ROLLED
      for (int i = 0; begin + i < end; i += 4) {
        const TokenNumbers::Four first = starts.four(begin + i), behind = ends.four(begin + i);
        uint32 inside = 0;
        for (int j = 0; j < 4; ++j) inside |= first.of[j] <= q && q < behind.of[j] ? 1u << j : 0u;
        bits |= inside << i;
      }
    }
    return bits;
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
