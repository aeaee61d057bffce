// Atoms whose mask is run-time data: bits of blocks, numbers of tokens, columns and slashes.
#pragma once

#include "girih/shared/atom.cuh"
#include "girih/shared/slash.cuh"
#include "girih/shared/token_numbers.cuh"

namespace girih {

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
    const SlashRow windows = plane.windows(q / SlashPlane::kRows);
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

}  // namespace girih
