// The mask of a partial tile, as words. A warp owns kRows (16 or 32) query rows of kKeys columns;
// each lane evaluates the pattern for one row and some of its 32-key words, and hands the words to
// the lanes that hold that row's scores. The pattern's code thus appears once or twice, whatever
// the number of fragments, and the code that touches scores is the same for every pattern.
#pragma once

#include "girih/shared/structure.cuh"

namespace girih {

template <int kRows, int kKeys>
struct WarpMask {
  static_assert(kRows == 16 || kRows == 32);
  static constexpr int kLanesPerRow = 32 / kRows;
  static constexpr int kWordsPerRow = ceil_div(kKeys, 32);
  static constexpr int kWordsPerLane = ceil_div(kWordsPerRow, kLanesPerRow);

  uint32 words[kWordsPerLane];  // of row lane % kRows: word lane / kRows, and every kLanesPerRow-th

  // key(column) is the key in a column; kRun, a divisor of 32, consecutive ones are consecutive
  // keys. All lanes call it together.
  template <class Classes, int kRun, class Key>
  __device__ __forceinline__ void evaluate(int head_class, const int* numbers,
                                           const Geometry& geometry, int first_row,
                                           const Key& key) {
    const int lane = threadIdx.x % 32;
    // The pattern's code appears once, but for a single class in tiles that leave registers: two
    // words share most of it.
    constexpr int kCopies = Classes::kCount == 1 && kRows == 16 && kKeys <= 96 ? kWordsPerLane : 1;
#pragma unroll kCopies
    for (int i = 0; i < kWordsPerLane; ++i) {
      const int word = i * kLanesPerRow + lane / kRows;
      uint32 bits = 0;
#pragma unroll 1
      for (int run = 0; run < 32; run += kRun) {
        const int first_key = key(32 * word + run);
        const uint32 seen = Classes::row_bits(head_class, numbers, geometry,
                                              first_row + lane % kRows, KeyWord{first_key});
        bits |= (kRun == 32 ? seen : seen & ((1u << kRun % 32) - 1)) << run;
      }
#pragma unroll
      for (int j = 0; j < kWordsPerLane; ++j) {
        if (i == j) words[j] = bits;
      }
    }
  }

  // Sets what row `row` of the warp does not see to -inf; scores[j] holds columns 8 * j and up, of
  // which this lane has 2 * (lane % 4) and the next, in elements 2 * r and 2 * r + 1.
  __device__ __forceinline__ void apply(float (&scores)[kKeys / 8][4], int row, int r) const {
#pragma unroll
    for (int word = 0; word < kWordsPerRow; ++word) {
      const int source = row + kRows * (word % kLanesPerRow);
      const uint32 visible =
          __shfl_sync(0xffffffff, words[word / kLanesPerRow], source) >> (2 * (threadIdx.x % 4));
#pragma unroll
      for (int j = 4 * word; j < min(4 * word + 4, kKeys / 8); ++j) {
        if (!(visible >> (8 * (j % 4)) & 1)) scores[j][2 * r] = kMinusInfinity;
        if (!(visible >> (8 * (j % 4) + 1) & 1)) scores[j][2 * r + 1] = kMinusInfinity;
      }
    }
  }
};

}  // namespace girih
