// The Hopper kernel's softmax, without a highest score.
//
// A probability is 2^(score * scale_log2 - origin) for any origin: what matters is that no sum
// overflows and that a row's highest does not vanish. So the highest score of the first tile that a
// row sees serves later tiles, too, and that it still does their sums tell, which are needed
// anyway. Where a sum is too high, or a row sees its first key, origins follow the scores, which
// stay what they are until then, and probabilities are found once more. After the first tiles that
// is rare.
//
// A tile of which a row sees nothing changes no bit of the row's state, so that results do not
// depend on which such tiles are visited.
#pragma once

#include "girih/attn/softmax.cuh"

namespace girih {

// Fragments has Scores, Probabilities and Output, kKeyFragments of scores, of which kEarlyFragments
// become probabilities while those of the tile before are still read, rescale(output, shrink), and
// pack_fragment(probabilities, j, p), with p of fragment j.
template <class Fragments>
struct LazySoftmax : OnlineSoftmax {
  using Output = typename Fragments::Output;
  using Probabilities = typename Fragments::Probabilities;
  using Scores = typename Fragments::Scores;
  static constexpr int kKeyFragments = Fragments::kKeyFragments;

  // What a score may exceed its origin by. The bound of a thread's sum is as many probabilities of
  // that height, so that a sum beyond it has a score beyond. fp16 holds either.
  static constexpr float kHeadroom = 8.0f;
  static constexpr float kHighestSum = 2 * kKeyFragments * 256.0f;

  static constexpr int kEarlyFragments = Fragments::kEarlyFragments;
  struct Early {
    float p[kEarlyFragments][4];
    float sum[2];  // this thread's part of each row
  };

  // Before the first tile. From the lowest origin there is, a visible score is infinitely far, and
  // a hidden one, -inf, stays so.
  __device__ __forceinline__ void reset() {
    origin[0] = origin[1] = -3.402823466e38f;
    row_sum[0] = row_sum[1] = 0.0f;
  }

  __device__ __forceinline__ void find_early(Early& early, const Scores& scores,
                                             float scale_log2) const {
    early.sum[0] = early.sum[1] = 0.0f;
#pragma unroll
    for (int j = 0; j < kEarlyFragments; ++j) {
      exponentiate(early.p[j], scores[j], scale_log2, early.sum);
    }
  }

  // Whether origins must follow: then nothing of the tile is in `row_sum`.
  __device__ __forceinline__ bool find_late(Probabilities& probabilities, const Early& early,
                                            const Scores& scores, float scale_log2) {
#pragma unroll
    for (int j = 0; j < kEarlyFragments; ++j)
      Fragments::pack_fragment(probabilities, j, early.p[j]);
    float sum[2] = {early.sum[0], early.sum[1]};
    find<kEarlyFragments>(probabilities, scores, scale_log2, sum);
    if (__any_sync(0xffffffff, !(sum[0] < kHighestSum) || !(sum[1] < kHighestSum))) return true;
#pragma unroll
    for (int r = 0; r < 2; ++r) row_sum[r] += sum[r];
    return false;
  }

  // Moves origins that scores exceed too far to the highest of the tile, and with them what was
  // accumulated, the output only if it was begun; finds all probabilities.
  __device__ __forceinline__ void follow(Probabilities& probabilities, Output& output, bool begun,
                                         const Scores& scores, float scale_log2) {
    float shrink[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float highest = row_max(scores, r) * scale_log2;
      const float before = origin[r];
      if (highest - before > kHeadroom) origin[r] = highest;
      shrink[r] = exp2_approx(before - origin[r]);
      row_sum[r] *= shrink[r];
    }
    if (begun) Fragments::rescale(output, shrink);
    find<0>(probabilities, scores, scale_log2, row_sum);
  }

 private:
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
