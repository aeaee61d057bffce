// The Hopper kernel's softmax, without a highest score.
//
// A probability is 2^(score * scale_log2 - origin) for any origin: what matters is that no sum
// overflows and that a row's highest does not vanish. So a row's origin is the highest score of the
// first tile that it sees for as long as that will do; the sums, which are needed anyway, tell when
// it no longer does. Where a sum is too high, or a row sees its first key, origins follow the
// scores, which stay what they are until then, and probabilities are found once more. After the
// first tiles that is rare, but where scores rise from tile to tile.
//
// Neither a tile of which a row sees nothing nor what other rows see changes a bit of the row's
// state, so that results do not depend on which such tiles are visited, nor on which rows share a
// warp. A score * scale_log2 of 2^28 and more is too coarse for any softmax: origins are rounded.
#pragma once

#include "girih/attn/softmax.cuh"
#include "girih/ptx/warp.cuh"

namespace girih {

// Fragments has Scores, Probabilities and Output, kKeyFragments of scores, of which kEarlyFragments
// become probabilities while those of the tile before are still read, rescale(output, shrink), and
// pack_fragment(probabilities, j, p), with p of fragment j. An origin that follows scores keeps
// kAhead ahead of the highest of them.
template <class Fragments>
struct LazySoftmax : OnlineSoftmax {
  using Output = typename Fragments::Output;
  using Probabilities = typename Fragments::Probabilities;
  using Scores = typename Fragments::Scores;
  static constexpr int kKeyFragments = Fragments::kKeyFragments;

  // A row's origin follows where a thread's sum is not below this, which probabilities of up to
  // 2^8 are.
  static constexpr float kHighestSum = 2 * kKeyFragments * 256.0f;
  static_assert(kHighestSum < 65504.0f, "fp16 holds every probability");

  static constexpr int kEarlyFragments = Fragments::kEarlyFragments;
  static_assert(kEarlyFragments <= kKeyFragments);
  struct Early {
    float p[kEarlyFragments][4];
    float sum[2];  // this thread's part of each row
  };

  // Before the first tile, which begins with follow(). From the lowest origin there is, a visible
  // score is infinitely far, and a hidden one, -inf, stays so.
  __device__ __forceinline__ void reset() {
    origin[0] = origin[1] = -3.402823466e38f;
    row_sum[0] = row_sum[1] = -0.0f;
  }

  __device__ __forceinline__ void find_early(Early& early, const Scores& scores,
                                             float scale_log2) const {
    early.sum[0] = early.sum[1] = 0.0f;
#pragma unroll
    for (int j = 0; j < kEarlyFragments; ++j) {
      exponentiate(early.p[j], scores[j], scale_log2, early.sum);
    }
  }

  // Whether some row's origin must follow: then nothing of the tile is in `row_sum`, whose sign
  // tells follow() which, for other registers are scarce.
  __device__ __forceinline__ bool find_late(Probabilities& probabilities, const Early& early,
                                            const Scores& scores, float scale_log2) {
#pragma unroll
    for (int j = 0; j < kEarlyFragments; ++j)
      Fragments::pack_fragment(probabilities, j, early.p[j]);
    float sum[2] = {early.sum[0], early.sum[1]};
    find<kEarlyFragments>(probabilities, scores, scale_log2, sum);
    const bool some = __any_sync(0xffffffff, is_too_high(sum[0]) || is_too_high(sum[1]));
#pragma unroll
    for (int r = 0; r < 2; ++r) {  // a branch would spill
      const uint32 sign = some && is_too_high(sum[r]) ? 0x80000000u : 0u;
      const float more = some ? 0.0f : sum[r];
      row_sum[r] = float_of_bits(__float_as_uint(row_sum[r] + more) | sign);
    }
    return some;
  }

  // Moves origins of rows with too high a sum by the highest score of the tile, and with them what
  // was accumulated, the output only if it was begun; finds all probabilities.
  __device__ __forceinline__ void follow(Probabilities& probabilities, Output& output, bool begun,
                                         const Scores& scores, float scale_log2) {
    const uint32 lanes_of_row = 0xfu << fresh_thread_index() % 32 / 4 * 4;
    float shrink[2], sum[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const bool own = __float_as_int(row_sum[r]) < 0;
      const bool moves = (__ballot_sync(0xffffffff, own) & lanes_of_row) != 0;
      const float highest = row_max(scores, r) * scale_log2;
      const float before = origin[r];
      if (moves && highest > before) origin[r] = highest + Fragments::kAhead;
      shrink[r] = exp2_approx(before - origin[r]);
      row_sum[r] = fabsf(row_sum[r]) * shrink[r];
      sum[r] = origin[r] - origin[r];  // 0, or NaN where a score is infinite
    }
    if (begun) Fragments::rescale(output, shrink);
    find<0>(probabilities, scores, scale_log2, sum);
#pragma unroll
    for (int r = 0; r < 2; ++r) row_sum[r] += sum[r];
  }

 private:
  static __device__ __forceinline__ bool is_too_high(float sum) { return !(sum < kHighestSum); }

  // Of one fragment.
  __device__ __forceinline__ void exponentiate(float (&p)[4], const float (&scores)[4],
                                               float scale_log2, float (&sum)[2]) const {
#pragma unroll
    for (int e = 0; e < 4; ++e) p[e] = exp2_approx(scores[e] * scale_log2 - origin[e / 2]);
#pragma unroll
    for (int r = 0; r < 2; ++r) sum[r] += p[2 * r] + p[2 * r + 1];
  }

  // Of the fragments from kFirst on.
  template <int kFirst>
  __device__ __forceinline__ void find(Probabilities& probabilities, const Scores& scores,
                                       float scale_log2, float (&sum)[2]) const {
#pragma unroll
    for (int j = kFirst; j < kKeyFragments; ++j) {
      float p[4];
      exponentiate(p, scores[j], scale_log2, sum);
      Fragments::pack_fragment(probabilities, j, p);
    }
  }
};

}  // namespace girih
