// Coordinates of one sequence's attention matrix, and the vocabulary of masks: spans of keys, words
// of bits, and runs of key tiles.
#pragma once

#include "girih/shared/inputs.cuh"

namespace girih {

// Lengths, start positions and every number in a pattern stay within this, so that sums of three
// of them fit an int.
constexpr int kMaxNumber = 1 << 29;

// Rounds down, also below zero; b > 0.
GIRIH_HD constexpr int floor_div(int a, int b) { return a / b - (a % b < 0 ? 1 : 0); }
GIRIH_HD constexpr int floor_mod(int a, int b) { return a % b + (a % b < 0 ? b : 0); }

// Where a block of positions begins, kept within what no position reaches.
GIRIH_HD constexpr int block_begin(int index, int block) {
  const int64 position = static_cast<int64>(index) * block;
  constexpr int kMost = 3 * kMaxNumber;
  return position < -kMost ? -kMost : position > kMost ? kMost : static_cast<int>(position);
}

// Query rows q in [0, seqlen_q), keys k in [0, seqlen_k). A row's position is p = q + q_start, a
// key's is k + k_start; bottom-right alignment is q_start = k_start + seqlen_k - seqlen_q.
// k_start is not negative, hence no key's position is.
struct Geometry {
  int seqlen_q = 0;
  int seqlen_k = 0;
  int q_start = 0;
  int k_start = 0;

  int head = 0;        // the query head, counted over the whole model
  int head_kv = 0;     // its key/value head, likewise
  int group_size = 1;  // query heads for each key/value head
  int num_heads = 1;   // query heads of the whole model

  // Run-time inputs of the pattern, by slot, and whose data of them to read: the sequence's and
  // that of a query head of this launch.
  const InputView* inputs = nullptr;
  int batch = 0;
  int local_head = 0;

  // The key index at a row's own position; may be negative or beyond the last key.
  GIRIH_HD int diagonal(int q) const { return q + q_start - k_start; }
};

// The keys [lo, hi) of a row; empty when lo >= hi. Bounds may lie outside the sequence.
struct Span {
  int lo;
  int hi;
  GIRIH_HD bool contains(int k) const { return lo <= k && k < hi; }
};
struct alignas(8) AlignedSpan : Span {};  // in memory: read at once

constexpr int kNoLowerBound = -2147483647 - 1;
constexpr int kNoUpperBound = 2147483647;
constexpr Span kEveryKey{kNoLowerBound, kNoUpperBound};

// The lowest bits of a word, so many: none from 0 down, all from 32 up (PTX ISA, "bmsk").
GIRIH_HD uint32 lowest_bits(int count) {
#ifdef __CUDA_ARCH__
  uint32 bits;
  asm("bmsk.clamp.b32 %0, 0, %1;" : "=r"(bits) : "r"(max(count, 0)));
  return bits;
#else
  return count <= 0 ? 0u : count >= 32 ? ~0u : (1u << count) - 1u;
#endif
}

// 32 consecutive keys of a row as a word: bit i is key first_key + i.
struct KeyWord {
  int first_key;

  // Bits of the keys below a bound.
  GIRIH_HD uint32 below(int bound) const { return lowest_bits(bound - first_key); }
  GIRIH_HD uint32 inside(Span span, int seqlen_k) const {  // clipped first: bounds may be extreme
    return below(min(span.hi, seqlen_k)) & ~below(max(span.lo, 0));
  }
};

// The existing rows [begin, end) of a query tile; never empty.
struct QueryRows {
  int begin;
  int end;
};

// The key tiles of a sequence: tile n holds the existing keys [n * block_n, (n + 1) * block_n).
struct KeyTiles {
  int block_n;
  int seqlen_k;
  GIRIH_HD int count() const { return ceil_div(seqlen_k, block_n); }
};

enum class TileKind : int { empty = 0, partial = 1, full = 2 };

// Tiles [n, end) are all of one kind, where n is the tile that was asked about. `empty` promises
// that no element is visible, `full` that every existing one is; `partial` promises nothing.
struct Run {
  int end;
  TileKind kind;
};

GIRIH_HD constexpr Run all_of(Run a, Run b) {
  if (a.kind == TileKind::empty && b.kind == TileKind::empty) return {max(a.end, b.end), a.kind};
  if (a.kind == TileKind::empty) return a;
  if (b.kind == TileKind::empty) return b;
  return {min(a.end, b.end), a.kind < b.kind ? a.kind : b.kind};
}

GIRIH_HD constexpr Run negation(Run a) {
  return {a.end, static_cast<TileKind>(2 - static_cast<int>(a.kind))};
}

GIRIH_HD constexpr Run any_of(Run a, Run b) { return negation(all_of(negation(a), negation(b))); }

// The run that tile n starts when the visible keys of all rows together are exactly `hull` and
// those that every row sees are exactly `core`.
GIRIH_HD Run seek_interval(Span hull, Span core, KeyTiles tiles, int n) {
  const int count = tiles.count();
  hull = {max(hull.lo, 0), min(hull.hi, tiles.seqlen_k)};
  core = {max(core.lo, 0), min(core.hi, tiles.seqlen_k)};
  if (hull.lo >= hull.hi) return {count, TileKind::empty};

  const int visible_begin = hull.lo / tiles.block_n;
  const int visible_end = ceil_div(hull.hi, tiles.block_n);
  if (n < visible_begin) return {visible_begin, TileKind::empty};
  if (n >= visible_end) return {count, TileKind::empty};

  if (core.lo < core.hi) {  // the last tile counts as full when its existing keys are
    const int full_begin = ceil_div(core.lo, tiles.block_n);
    const int full_end = core.hi == tiles.seqlen_k ? count : core.hi / tiles.block_n;
    if (n < full_begin) return {min(full_begin, visible_end), TileKind::partial};
    if (n < full_end) return {full_end, TileKind::full};
  }
  return {visible_end, TileKind::partial};
}

// For the run of a whole expression: a full tile that crosses the end of the keys becomes partial.
// Inside an expression a negation would undo it.
GIRIH_HD Run demote_last_tile(Run run, KeyTiles tiles, int n) {
  const int whole_tiles = tiles.seqlen_k / tiles.block_n;
  if (run.kind != TileKind::full || run.end <= whole_tiles) return run;
  if (n >= whole_tiles) return {run.end, TileKind::partial};
  return {whole_tiles, TileKind::full};
}

}  // namespace girih
