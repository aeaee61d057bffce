// A number for each token of a sequence as atoms read it, with the range of each block of tokens
// and of each span of blocks, by which whole key tiles are judged; and, where rows and keys are
// compared, which keys each row and each block of rows sees, as far as intervals can say it.
#pragma once

#include "girih/shared/geometry.cuh"

namespace girih {

// The least and the largest of some numbers.
struct alignas(8) NumberRange {
  int least;
  int most;

  GIRIH_HD NumberRange joined(NumberRange other) const {
    return {min(least, other.least), max(most, other.most)};
  }
};
constexpr NumberRange kNoNumbers{2147483647, -2147483647 - 1};

// What rows see of the keys: none sees any outside `hull`, and each sees all inside `core`.
struct alignas(16) SeenKeys {
  Span hull;
  Span core;

  // Of the one's rows and the other's.
  GIRIH_HD SeenKeys joined(SeenKeys other) const {
    return {{min(hull.lo, other.hull.lo), max(hull.hi, other.hull.hi)},
            {max(core.lo, other.core.lo), min(core.hi, other.core.hi)}};
  }
  GIRIH_HD bool is_exact() const { return hull.lo == core.lo && hull.hi == core.hi; }
};
constexpr SeenKeys kNoKeys{{2147483647, 0}, {2147483647, 0}};

// Stands for what one row sees where that is no interval, or was not found to be one.
constexpr Span kNoInterval{0, -1};

// One side of a plane of an input: the queries' numbers, or one of those that keys have. A plane's
// sides lie behind one another and have room for as many tokens each: row_stride spans. A plane of
// indices has the queries' side, the keys', and for each way to compare them the interval of keys
// that each row sees, and the SeenKeys of each block of rows.
struct TokenNumbers {
  static constexpr int kBlock = 32;   // tokens: small, for tiles begin at multiples of 16
  static constexpr int kSpan = 1024;  // tokens
  static constexpr int kBlocksPerSpan = kSpan / kBlock;
  // A side holds its numbers, the blocks' ranges, then the spans', two words a range; it ends at a
  // multiple of 16 bytes.
  static constexpr int kWordsPerSpan = round_up(kSpan + 2 * kBlocksPerSpan + 2, 4);

  static constexpr int kNumComparisons = 3;  // segments, index_ge, index_gt
  static constexpr int kWordsPerComparedSpan = 2 * kSpan + 4 * kBlocksPerSpan;
  static constexpr int kIndexWordsPerSpan =  // of a plane of indices
      2 * kWordsPerSpan + kNumComparisons * kWordsPerComparedSpan;

  const int* numbers;
  int num_spans;

  GIRIH_HD static TokenNumbers of(const Geometry& g, int slot, int side) {
    const InputView& view = g.inputs[slot];
    const uint32* plane = view.plane(g.batch, g.local_head);
    return {reinterpret_cast<const int*>(plane) + side * kWordsPerSpan * view.row_stride,
            view.row_stride};
  }

  GIRIH_HD static int block_ranges(int num_spans) { return kSpan * num_spans; }  // words
  GIRIH_HD static int span_ranges(int num_spans) {
    return block_ranges(num_spans) + 2 * kBlocksPerSpan * num_spans;
  }

  // Words from a plane's first to the intervals of its rows, and to what its blocks of rows see.
  GIRIH_HD static int intervals(int num_spans, int comparison) {
    return (2 * kWordsPerSpan + comparison * kWordsPerComparedSpan) * num_spans;
  }
  GIRIH_HD static int seen_keys(int num_spans, int comparison) {
    return intervals(num_spans, comparison) + 2 * kSpan * num_spans;
  }
  // On the queries' side: of a row, and of the blocks that hold the rows [begin, end), at least
  // one.
  GIRIH_HD Span interval(int comparison, int row) const {
    return reinterpret_cast<const AlignedSpan*>(numbers + intervals(num_spans, comparison))[row];
  }
  GIRIH_HD SeenKeys seen(int comparison, int begin, int end) const {
    const auto* of_blocks =
        reinterpret_cast<const SeenKeys*>(numbers + seen_keys(num_spans, comparison));
    SeenKeys result = of_blocks[begin / kBlock];
    GIRIH_ROLLED
    for (int block = begin / kBlock + 1; block * kBlock < end; ++block) {
      result = result.joined(of_blocks[block]);
    }
    return result;
  }

  GIRIH_HD NumberRange range_of_block(int block) const {
    return *reinterpret_cast<const NumberRange*>(numbers + block_ranges(num_spans) + 2 * block);
  }
  GIRIH_HD NumberRange range_of_span(int span) const {
    return *reinterpret_cast<const NumberRange*>(numbers + span_ranges(num_spans) + 2 * span);
  }

  // Of the blocks that hold the tokens [begin, end), at least one.
  GIRIH_HD NumberRange range(int begin, int end) const {
    NumberRange result = range_of_block(begin / kBlock);
    GIRIH_ROLLED
    for (int block = begin / kBlock + 1; block * kBlock < end; ++block) {
      result = result.joined(range_of_block(block));
    }
    return result;
  }

  // Of the tokens token, ..., token + 3; on the GPU token is a multiple of 4.
  struct alignas(16) Four {
    int of[4];
  };
  GIRIH_HD Four four(int token) const {
#ifdef __CUDA_ARCH__
    return *reinterpret_cast<const Four*>(numbers + token);
#else
    return {numbers[token], numbers[token + 1], numbers[token + 2], numbers[token + 3]};
#endif
  }
};

}  // namespace girih
