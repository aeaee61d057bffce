// Pruning on the device: whether a key tile's scores reach the threshold, and how warps that each
// see some of its rows come to one decision.
#pragma once

#include "girih/attn/mask.cuh"
#include "girih/ptx/mbarrier.cuh"
#include "girih/ptx/warp.cuh"
#include "girih/shared/params.cuh"
#include "girih/shared/prune.cuh"
#include "girih/tile/swizzle.cuh"

namespace girih {

// Whether a kernel prunes at all; an entry of one that does says kPrune.
template <class Config>
constexpr bool kPrunes = requires {
  Config::kPrune;
};

// Whether a kernel finds tile maxima and nothing else.
template <class Config>
constexpr bool kWantsTileMaxima = requires {
  Config::kTileMaxima;
};

// Query tiles of a head come in series, which a CTA takes one after the other, and mostly skip the
// same key tiles. So the first of a series scouts: it visits key tiles as they lie. Those behind it
// first visit what it skipped and then the rest: so consumers begin and end a run of kept tiles,
// which takes them longer than a tile, once in a query tile. A wrong guess costs time and nothing
// else.
enum class KeyOrder : int { kAsTheyLie, kScouts, kSkippedFirst, kRest };

// A part of a query tile's description that only kernels have which prune.
template <bool kPrune>
struct PrunedTile {};
template <>
struct PrunedTile<true> {
  PruneRule rule;
  KeyOrder order;  // of the next visit
};

// A thread's highest scores of the two rows of a fragment. Of the rows from its first one on,
// num_rows exist: those beyond a sequence's last row are another's, or nobody's. -inf where there
// is none.
struct HighestScores {
  float of_row[2];

  __device__ __forceinline__ float of_both(int num_rows) const {
    const float first = num_rows > 0 ? of_row[0] : kMinusInfinity;
    return num_rows > 8 ? fmaxf(first, of_row[1]) : first;
  }
};

// Of the first kLooked fragments.
template <int kLooked, int kKeyFragments>
__device__ __forceinline__ HighestScores highest_of(const float (&scores)[kKeyFragments][4]) {
  HighestScores highest;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float a = scores[0][2 * r], b = scores[0][2 * r + 1];
#pragma unroll
    for (int j = 1; j < kLooked; ++j) {
      a = fmaxf(a, scores[j][2 * r]);
      b = fmaxf(b, scores[j][2 * r + 1]);
    }
    highest.of_row[r] = fmaxf(a, b);
  }
  return highest;
}

// The same where a row has a positive score, else one that is not: as integers, floats have the
// highest of all where it is positive, and three at a time are compared as fast as two. Scores that
// are not are out of order, -0 below all others, so that they serve thresholds above 0 alone; and a
// positive NaN is above all numbers, and reaches none.
template <int kLooked, int kKeyFragments>
__device__ __forceinline__ HighestScores
highest_positive_of(const float (&scores)[kKeyFragments][4]) {
  HighestScores highest;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    int a = __float_as_int(scores[0][2 * r]), b = __float_as_int(scores[0][2 * r + 1]);
#pragma unroll
    for (int j = 1; j < kLooked; ++j) {
      a = max(a, __float_as_int(scores[j][2 * r]));
      b = max(b, __float_as_int(scores[j][2 * r + 1]));
    }
    highest.of_row[r] = __int_as_float(max(a, b));
  }
  return highest;
}

// Whether a score of this thread's first kLooked fragments, times the scale, reaches the threshold,
// which is no NaN: it is natural, the scale in base 2. What is masked is -inf. num_rows as above.
template <int kLooked, int kKeyFragments>
__device__ __forceinline__ bool reaches(const float (&scores)[kKeyFragments][4], int num_rows,
                                        float scale_log2, float threshold) {
  constexpr float kLog2E = 1.44269504088896341f;
  const float threshold_log2 = threshold * kLog2E;
  const HighestScores highest =
      threshold_log2 > 0.0f ? highest_positive_of<kLooked>(scores) : highest_of<kLooked>(scores);
  return highest.of_both(num_rows) * scale_log2 >= threshold_log2;
}

// The maxima of a query tile's key tiles: [num_k_tiles], from those of its head,
// [num_q_tiles, num_k_tiles].
__device__ __forceinline__ float* tile_maxima_row(const FwdParams& params, float* of_head,
                                                  int first_row, int block_n) {
  return of_head + int64{first_row / kPruneRows} * ceil_div(params.geometry.seqlen_k, block_n);
}

// Raises a maximum in global memory to a warp's scores, num_rows as above; they are scaled in base
// 2, it is natural. Floats of one sign are ordered as integers are, or the other way round.
template <int kKeyFragments>
__device__ __forceinline__ void raise(float& maximum, const float (&scores)[kKeyFragments][4],
                                      int num_rows, float scale_log2) {
  constexpr float kLn2 = 0.693147180559945309f;
  float highest = highest_of<kKeyFragments>(scores).of_both(num_rows);
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) {
    highest = fmaxf(highest, __shfl_xor_sync(0xffffffff, highest, lane));
  }
  if (threadIdx.x % 32 != 0) return;
  highest = highest * scale_log2 * kLn2 + 0.0f;  // +0 also where it was -0
  if (highest >= 0.0f) {
    atomicMax(reinterpret_cast<int*>(&maximum), __float_as_int(highest));
  } else {
    atomicMin(reinterpret_cast<uint32*>(&maximum), __float_as_uint(highest));
  }
}

// Votes of warps on key tiles, one after the other, in shared memory: a warpgroup wants a tile
// where scores of some warp reach the threshold, and a tile is kept where some warpgroup wants it.
// kSlots is more than how many votes one warp may be ahead of another, or of who reads them.
template <bool kPrune, int kWarpgroups, int kSlots>
struct PruneVotes {
  __device__ __forceinline__ void init() {}
};
template <int kWarpgroups, int kSlots>
struct PruneVotes<true, kWarpgroups, kSlots> {
  static_assert((kSlots & (kSlots - 1)) == 0, "slots and phases follow from a vote's number");

  uint64 all[kWarpgroups][kSlots];                 // ends when every warp of it has voted
  alignas(4) bool wanted[kWarpgroups][kSlots][4];  // by each of them

  __device__ __forceinline__ void init() {
#pragma unroll 1
    for (int i = 0; i < kWarpgroups * kSlots; ++i) {
      mbarrier_init(shared_address(&all[0][0] + i), 4);
    }
  }

  // Casts a warp's vote.
  __device__ __forceinline__ void cast(int warpgroup, uint32 number, bool wants, int lane) {
    const int slot = number % kSlots;
    if (lane == 0) {
      static_cast<volatile bool&>(wanted[warpgroup][slot][threadIdx.x / 32 % 4]) = wants;
      mbarrier_arrive(shared_address(&all[warpgroup][slot]));
    }
  }

  // Waits for what a warpgroup wants; by a whole warp.
  __device__ __forceinline__ bool wants(int warpgroup, uint32 number) const {
    const int slot = number % kSlots;
    mbarrier_wait(shared_address(&all[warpgroup][slot]), number / kSlots % 2);
    return *reinterpret_cast<const volatile uint32*>(wanted[warpgroup][slot]) != 0;
  }

  // Waits for what they decide; by a whole warp. Where one wants the tile, those behind it are not
  // waited for: warpgroups are half a tile apart, and V is to come before the first one needs it.
  __device__ __forceinline__ bool keep(uint32 number) const {
#pragma unroll
    for (int i = 0; i < kWarpgroups; ++i) {
      if (wants(i, number)) return true;
    }
    return false;
  }
};

// Which V is copied, tile by tile: that of kept tiles. Behind a kept tile of the same query tile
// it is copied at once, for likely the next one is kept, too, and a vote takes time; consumers that
// skip that one release its V.
struct KeptValues {
  uint32 votes = 0;
  bool kept = false;  // the tile before

  // Calls copy() if the next tile's V is to be copied; tells whether that tile is kept. By a whole
  // warp.
  template <class Votes, class Copy>
  __device__ __forceinline__ bool next(const Votes& votes_of_tiles, bool first, bool may_skip,
                                       const Copy& copy) {
    const bool at_once = !may_skip || (kept && !first);
    kept = at_once || votes_of_tiles.keep(votes++);
    if (!kept) return false;
    copy();
    if (at_once && may_skip) kept = votes_of_tiles.keep(votes++);
    return kept;
  }
};

// Which key tiles the scout skipped. Who loads V learns of decisions and notes them; the rest is
// the scheduler's.
template <bool kPrune>
struct SkippedTiles {
  __device__ __forceinline__ void init() {}
};
template <>
struct SkippedTiles<true> {
  static constexpr int kTiles = 2048;  // tile n + 2048 shares the bit of n

  uint64 noted;  // ends with the scout's last tile
  uint32 words[kTiles / 32];
  uint32 num_scouts;
  bool scouted;  // the series

  __device__ __forceinline__ void init() {
    mbarrier_init(shared_address(&noted), 1);
    num_scouts = 0;
  }

  // Of a query tile behind `taken` others of its series, and before others if `more`; by one lane.
  __device__ __forceinline__ KeyOrder order_of(const PruneRule& rule, int taken, bool more) {
    if (taken > 0) return scouted ? KeyOrder::kSkippedFirst : KeyOrder::kAsTheyLie;
    scouted = more && rule.threshold > PruneRule::kKeepAll;
    if (!scouted) return KeyOrder::kAsTheyLie;
    ++num_scouts;
    return KeyOrder::kScouts;
  }

  // Before the query tile's first key tile is looked for; by a warp.
  __device__ __forceinline__ void begin(KeyOrder order) {
    if (order == KeyOrder::kScouts) {
      for (int i = fresh_thread_index() % 32; i < kTiles / 32; i += 32) words[i] = 0;
    } else if (order == KeyOrder::kSkippedFirst) {
      mbarrier_wait(shared_address(&noted), (num_scouts - 1) % 2);
    }
  }

  // By one lane.
  __device__ __forceinline__ void note(int tile, bool skipped, bool last) {
    if (skipped) words[tile % kTiles / 32] |= 1u << tile % 32;
    if (last) mbarrier_arrive(shared_address(&noted));
  }

  __device__ __forceinline__ bool contain(int tile) const {
    return (words[tile % kTiles / 32] >> tile % 32 & 1) != 0;
  }
};

}  // namespace girih
