// A pattern's run-time inputs as its atoms read them, and bits of block masks.
#pragma once

#include "girih/shared/platform.cuh"

namespace girih {

// One input for all sequences and heads. Numbers: an int each. Blocks: bit j % 32 of word j / 32 of
// row i says whether block i of the query rows sees block j of the keys; both count from the
// sequence's own first token.
struct InputView {
  const uint32* data = nullptr;
  int64 batch_stride = 0;   // words; 0 where all sequences share
  int64 head_stride = 0;    // words, from plane to plane
  int row_stride = 0;       // words, from one row of blocks to the next
  int heads_per_plane = 1;  // query heads that share: 1, group_size or num_heads

  // `head` counts this launch's query heads.
  GIRIH_HD const uint32* plane(int batch, int head) const {
    return data + batch * batch_stride + small_quotient(head, heads_per_plane) * head_stride;
  }
};

template <int kCount>
struct InputTable {
  InputView views[kCount];
};

// The lowest bit of a word that is not 0.
GIRIH_HD int lowest_bit(uint32 word) {
#ifdef __CUDA_ARCH__
  return __ffs(static_cast<int>(word)) - 1;
#else
  return __builtin_ctz(word);
#endif
}

GIRIH_HD int lowest_bit(uint64 word) {
#ifdef __CUDA_ARCH__
  return __ffsll(static_cast<int64>(word)) - 1;
#else
  return __builtin_ctzll(word);
#endif
}

// Columns of a few rows of bits, searched together.
struct BitRows {
  const uint32* first_row;
  int row_stride;  // words
  int num_rows;
  int num_columns;

  static constexpr int kNone = 2147483647;

  // Of the first row.
  GIRIH_HD bool contains(int column) const {
    return (first_row[column / 32] >> column % 32 & 1) != 0;
  }

  // The first columns from `column` on that some row has set, and that some row has clear; kNone
  // where there is none. Where one of the two is kFar columns away or farther, a nearer column may
  // stand for it, at least kFar - 32 away: long runs are not searched to their end again and again.
  struct Next {
    int set;
    int clear;
  };
  static constexpr int kFar = 512;
  GIRIH_HD Next next(int column) const {
    Next next{kNone, kNone};
    uint32 ahead = ~0u << column % 32;
    GIRIH_ROLLED
    for (int w = column / 32; 32 * w < num_columns; ++w) {
      if (w - column / 32 == kFar / 32) {
        next.set = min(next.set, 32 * w);
        next.clear = min(next.clear, 32 * w);
        break;
      }
      uint32 any = 0, all = ~0u;
      GIRIH_ROLLED
      for (int row = 0; row < num_rows; ++row) {
        const uint32 word = first_row[int64{row} * row_stride + w];
        any |= word;
        all &= word;
      }
      any &= ahead;
      all |= ~ahead;
      if (next.set == kNone && any != 0) next.set = 32 * w + lowest_bit(any);
      if (next.clear == kNone && all != ~0u) next.clear = 32 * w + lowest_bit(~all);
      if (next.set != kNone && next.clear != kNone) break;
      ahead = ~0u;
    }
    if (next.set >= num_columns) next.set = kNone;  // bits behind the last column mean nothing
    if (next.clear >= num_columns) next.clear = kNone;
    return next;
  }
};

}  // namespace girih
