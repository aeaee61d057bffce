// Which blocks of keys a block of queries keeps, a warp a row of blocks: a given number of those
// with the largest values, or the fewest whose values add up to a share of the row's sum. Some are
// forced: they come first, and count. Of equal values the lowest blocks are taken.
#pragma once

#include "girih/shared/platform.cuh"

namespace girih {

// A row of blocks of which `count` are visible.
struct BlockRow {
  uint32* ranks;  // each lane reads those that it has put there
  int count;
  int diagonal_begin, diagonal_end;  // forced
  bool keep_first;                   // likewise
  float forced;                      // what this lane's have together
};

#ifdef __CUDACC__

struct SelectBlocks {
  static constexpr int kDigitBits = 2;  // of a rank, found together
  static constexpr int kDigits = 1 << kDigitBits;
  static constexpr uint32 kForced = ~0u;

  // Ranks ascend with the values; forced blocks come before all others.
  static __device__ __forceinline__ void put(BlockRow& row, int block, float value) {
    const bool on_diagonal = row.diagonal_begin <= block && block < row.diagonal_end;
    const bool is_forced = on_diagonal || (row.keep_first && block == 0);
    const uint32 bits = __float_as_uint(value);
    row.ranks[block] = is_forced ? kForced : bits ^ (bits >> 31 ? 0xffffffffu : 0x80000000u);
    if (is_forced) row.forced += value;
  }
  // Of what is not negative nor forced.
  static __device__ __forceinline__ float value_of(uint32 rank) {
    return __int_as_float(static_cast<int>(rank ^ 0x80000000u));
  }

  // What blocks of rank `least` + i * step or more weigh together, i from 1 to kDigits - 1: by
  // their values, or 1 each. Sums over more blocks are never smaller, for rounding is monotonous
  // and the order is always the same.
  using Weights = float[kDigits - 1];
  template <bool kByValue>
  static __device__ void weigh(const BlockRow& row, uint32 least, uint32 step, Weights& weights) {
#pragma unroll
    for (float& weight : weights) weight = kByValue ? row.forced : 0.0f;
#pragma unroll 4
    for (int block = threadIdx.x % 32; block < row.count; block += 32) {
      const uint32 own = row.ranks[block];
      const float weight = !kByValue ? 1.0f : own == kForced ? 0.0f : value_of(own);
#pragma unroll
      for (int i = 0; i < kDigits - 1; ++i) {
        if (own >= least + (i + 1) * step) weights[i] += weight;
      }
    }
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes /= 2) {
#pragma unroll
      for (float& weight : weights) weight += __shfl_xor_sync(0xffffffff, weight, lanes);
    }
  }

  // top_k: how many; 0 for as many as reach `threshold` of the sum of all values, none of which is
  // negative. Writes a byte for each of num_blocks.
  static __device__ void run(const BlockRow& row, int top_k, float threshold, unsigned char* mask,
                             int num_blocks) {
    if (top_k > 0) {
      take<false>(row, static_cast<float>(min(top_k, row.count)), mask, num_blocks);
    } else {
      Weights weights;
      weigh<true>(row, 0, 0, weights);
      take<true>(row, threshold * weights[0], mask, num_blocks);
    }
  }

 private:
  template <bool kByValue>
  static __device__ __forceinline__ void take(const BlockRow& row, float wanted,
                                              unsigned char* mask, int num_blocks) {
    Weights weights;
    uint32 least = 0;  // the largest rank from which on blocks weigh as much as wanted
    bool exact = false;
#pragma unroll 1
    for (int shift = 32 - kDigitBits; shift >= 0 && !exact; shift -= kDigitBits) {
      weigh<kByValue>(row, least, 1u << shift, weights);
      int digit = 0;
#pragma unroll
      for (int i = 0; i < kDigits - 1; ++i) {
        if (weights[i] < wanted) continue;
        digit = i + 1;
        exact = !kByValue && weights[i] == wanted;  // nothing is left to tell apart
      }
      least += static_cast<uint32>(digit) << shift;
    }
    constexpr float kAll = 1e9f;
    float equals = kAll;  // so many of the least rank
    if (!exact && least != kForced) {
      weigh<kByValue>(row, least, 1, weights);
      equals = fminf(ceilf((wanted - weights[0]) / (kByValue ? value_of(least) : 1.0f)), kAll);
    }

    const int lane = threadIdx.x % 32;
    int left = static_cast<int>(equals);
#pragma unroll 1
    for (int first = 0; first < num_blocks; first += 32) {
      const int block = first + lane;
      const bool visible = block < row.count;
      const uint32 own = visible ? row.ranks[block] : 0;
      // From an exact boundary on everything is taken.
      const bool is_least = visible && !exact && own == least;
      const uint32 same = __ballot_sync(0xffffffff, is_least);
      const int before = __popc(same & ((1u << lane) - 1));
      const bool taken = visible && (is_least ? before < left : own >= least);
      if (block < num_blocks) mask[block] = taken ? 1 : 0;
      left -= __popc(same);
    }
  }
};

#endif  // __CUDACC__

}  // namespace girih
