// The columns and distances with the largest sums, a CTA a list: their least value by the digits of
// its bits, then what reaches it in ascending order. Of equal values the lowest indices are taken.
#pragma once

#include "girih/shared/platform.cuh"
#ifdef __CUDACC__
#include "girih/attn/cta_sum.cuh"
#endif

namespace girih {

constexpr int kSelectThreads = 1024;

struct SelectParams {
  static constexpr int kLists = 2;        // of a plane
  static constexpr int kMostHeads = 256;  // with numbers of their own: parameters take 4 KB
  const float* values;                    // [num_planes, kLists, stride], not negative
  int num_planes;
  int num_heads;  // plane i is of head i % num_heads
  int count;      // of values in a list
  int stride;     // a multiple of 4

  struct List {
    int* out;       // [num_planes, width]; what is not selected becomes -1
    int width;      // to select, unless heads have numbers of their own
    int forced;     // so many of the first indices come before all others
    bool per_head;  // whether they have, up to the width
  };
  List lists[kLists];
  int head_numbers[kLists][kMostHeads];

  GIRIH_HD int number(int list, int plane) const {
    return lists[list].per_head ? head_numbers[list][plane % num_heads] : lists[list].width;
  }
};

#ifdef __CUDACC__

struct SelectLargest {
  static constexpr int kDigits = 3;
  static constexpr int kDigitBits = 11;
  static constexpr int kBins = 1 << kDigitBits;
  static constexpr int kStep = 4 * kSelectThreads;  // values that the CTA looks at together

  struct Shared {
    int bins[kBins];
    int counts[kSelectThreads / 32];
    uint32 digit;
    int left;
  };

  // Values as numbers that are larger where the value is.
  static __device__ uint32 ranked(uint32 bits, int index, const SelectParams::List& list) {
    return index < list.forced ? ~0u : bits;
  }

  // The four from index `index` on.
  static __device__ void load(const SelectParams& p, const SelectParams::List& list,
                              const uint32* values, int index, uint32 (&four)[4]) {
    if (index >= p.count) return;
    const uint4 loaded = *reinterpret_cast<const uint4*>(values + index);
    four[0] = ranked(loaded.x, index, list);
    four[1] = ranked(loaded.y, index + 1, list);
    four[2] = ranked(loaded.z, index + 2, list);
    four[3] = ranked(loaded.w, index + 3, list);
  }

  // Counts, by their digit at `shift`, the values that agree with `prefix` in the `known` bits;
  // then finds the digit of the one that is the left-th largest of them, and which it is of that
  // digit.
  static __device__ void find_digit(const SelectParams& p, const SelectParams::List& list,
                                    const uint32* values, uint32 prefix, uint32 known, int shift,
                                    Shared& shared) {
    for (int i = threadIdx.x; i < kBins; i += kSelectThreads) shared.bins[i] = 0;
    __syncthreads();
#pragma unroll 4
    for (int first = 0; first < p.count; first += kStep) {
      const int index = first + 4 * static_cast<int>(threadIdx.x);
      uint32 four[4] = {};
      load(p, list, values, index, four);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (index + i >= p.count || ((four[i] ^ prefix) & known) != 0) continue;
        atomicAdd(&shared.bins[four[i] >> shift & (kBins - 1)], 1);
      }
    }
    __syncthreads();

    constexpr int kEach = kBins / kSelectThreads;  // the first threads have the highest bins
    const int highest = kBins - 1 - kEach * static_cast<int>(threadIdx.x);
    int own = 0;
#pragma unroll
    for (int i = 0; i < kEach; ++i) own += shared.bins[highest - i];
    const int left = shared.left;
    int all;
    int before = sum_before<kSelectThreads>(own, shared.counts, all);
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int here = shared.bins[highest - i];
      if (before < left && left <= before + here) {
        shared.digit = static_cast<uint32>(highest - i);
        shared.left = left - before;
      }
      before += here;
    }
    __syncthreads();
  }

  // What is greater than `least`, and of what is equal the first `equals`.
  static __device__ void gather(const SelectParams& p, const SelectParams::List& list,
                                const uint32* values, uint32 least, int equals, int* out,
                                Shared& shared) {
    int greater_before = 0, equal_before = 0;  // of all values so far
    for (int first = 0; first < p.count; first += kStep) {
      const int index = first + 4 * static_cast<int>(threadIdx.x);
      uint32 four[4] = {};
      load(p, list, values, index, four);
      int found = 0;  // greater ones, and equal ones from bit 16 on
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (index + i >= p.count) continue;
        found += four[i] > least ? 1 : four[i] == least ? 1 << 16 : 0;
      }
      int all;
      const int before = sum_before<kSelectThreads>(found, shared.counts, all);
      int greater = greater_before + (before & 0xffff);
      int equal = equal_before + (before >> 16);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (index + i >= p.count || four[i] < least) continue;
        const bool is_equal = four[i] == least;
        if (!is_equal || equal < equals) out[greater + min(equal, equals)] = index + i;
        greater += !is_equal;
        equal += is_equal;
      }
      greater_before += all & 0xffff;
      equal_before += all >> 16;
    }
  }

  static __device__ void run(const SelectParams& p) {
    __shared__ Shared shared;
    for (int job = blockIdx.x; job < SelectParams::kLists * p.num_planes; job += gridDim.x) {
      const int plane = job / SelectParams::kLists;
      const int index = job % SelectParams::kLists;
      const SelectParams::List& list = p.lists[index];
      const uint32* const values =
          reinterpret_cast<const uint32*>(p.values) + static_cast<int64>(job) * p.stride;
      int* const out = list.out + static_cast<int64>(plane) * list.width;
      const int selected = min(p.number(index, plane), p.count);
      for (int i = selected + threadIdx.x; i < list.width; i += kSelectThreads) out[i] = -1;
      if (selected == 0) continue;

      if (threadIdx.x == 0) shared.left = selected;
      uint32 least = 0, known = 0;
      for (int digit = kDigits - 1; digit >= 0; --digit) {
        const int shift = max(digit * kDigitBits - 1, 0);  // 21, 10 and 0: one bit is read twice
        find_digit(p, list, values, least, known, shift, shared);
        least |= shared.digit << shift;
        known = ~0u << shift;
      }
      gather(p, list, values, least, shared.left, out, shared);
      __syncthreads();
    }
  }
};

#endif  // __CUDACC__

}  // namespace girih
