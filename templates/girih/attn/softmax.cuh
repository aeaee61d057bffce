// Online softmax in base 2 over accumulator fragments. A thread holds two rows of each 16-row
// fragment (r = 0, 1: rows lane / 4 and lane / 4 + 8), and four lanes share a row.
#pragma once

#include "girih/attn/mask.cuh"
#include "girih/ptx/convert.cuh"

namespace girih {

// What scores are multiplied by before the exponential, for base e and for base 2.
struct ScoreScale {
  float natural;
  float log2;
};

// A softcap c replaces s = softmax_scale * score by c * tanh(s / c): scores become tanh(s / c),
// and c their scale. 0 is no softcap.
__device__ __forceinline__ ScoreScale capped_scale(ScoreScale scale, float softcap) {
  constexpr float kLog2E = 1.44269504088896341f;
  return softcap > 0.0f ? ScoreScale{softcap, softcap * kLog2E} : scale;
}

// score -> tanh(s / c), with factor = log2(e) * softmax_scale / c. Through the exponential, for
// tanh.approx has eleven bits only: tanh(x) = 1 - 2 / (1 + e^(2x)).
template <int kKeyFragments>
__device__ __forceinline__ void cap_scores(float (&scores)[kKeyFragments][4], float factor) {
#pragma unroll
  for (int j = 0; j < kKeyFragments; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float exponential = exp2_approx(2.0f * factor * scores[j][e]);
      scores[j][e] = 1.0f - 2.0f * reciprocal_approx(1.0f + exponential);
    }
  }
}

// The state of one 16-row fragment. Probabilities are relative to a reference, which follows the
// row's maximum: at once, or only when it is exceeded by more than 2^kHeadroom, which after the
// first tiles is rare and keeps fp16 probabilities far from overflow.
struct OnlineSoftmax {
  static constexpr float kHeadroom = 8.0f;  // in base 2

  float reference[2] = {kMinusInfinity, kMinusInfinity};  // a score, before scaling
  float row_sum[2] = {0.0f, 0.0f};                        // this thread's part

  // Scores become probabilities relative to the new references. Returns, for each row, the factor
  // by which what was accumulated before must shrink, exactly 1 while the reference stays. A row
  // that has seen nothing stays at zero: -inf - (-inf) would be NaN, so its reference counts as 0.
  template <int kKeyFragments>
  __device__ __forceinline__ void update(float (&scores)[kKeyFragments][4], float scale_log2,
                                         float (&shrink)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float highest = row_max(scores, r, reference[r]);
      // The difference is exactly 0 while the reference stays: an exponent of rounded products
      // would shrink a little at every tile.
      const float finite = highest == kMinusInfinity ? 0.0f : highest;
      shrink[r] = exp2_approx((reference[r] - finite) * scale_log2);
      reference[r] = highest;
      exponentiate(scores, r, scale_log2, finite * scale_log2, shrink[r]);
    }
  }

  template <int kKeyFragments>
  __device__ __forceinline__ void update_seldom(float (&scores)[kKeyFragments][4], float scale_log2,
                                                float (&shrink)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float highest = row_max(scores, r, kMinusInfinity);
      shrink[r] = 1.0f;
      if ((highest - reference[r]) * scale_log2 > kHeadroom) {
        shrink[r] = exp2_approx((reference[r] - highest) * scale_log2);
        reference[r] = highest;
      }
      const float origin = reference[r] == kMinusInfinity ? 0.0f : reference[r] * scale_log2;
      exponentiate(scores, r, scale_log2, origin, shrink[r]);
    }
  }

  // Whether the reference of some row of the warp moved; known only when all probabilities are,
  // for sums are never negative.
  __device__ __forceinline__ bool moved(const float (&shrink)[2]) const {
    return __any_sync(0xffffffff, shrink[0] != 1.0f || shrink[1] != 1.0f || row_sum[0] < 0.0f ||
                                      row_sum[1] < 0.0f);
  }

  // The highest score of row r, at least `highest`.
  template <int kKeyFragments>
  static __device__ __forceinline__ float row_max(const float (&scores)[kKeyFragments][4], int r,
                                                  float highest) {
#pragma unroll
    for (int j = 0; j < kKeyFragments; ++j) {
      highest = fmaxf(highest, fmaxf(scores[j][2 * r], scores[j][2 * r + 1]));
    }
    highest = fmaxf(highest, __shfl_xor_sync(0xffffffff, highest, 1));
    return fmaxf(highest, __shfl_xor_sync(0xffffffff, highest, 2));
  }

  template <int kKeyFragments>
  __device__ __forceinline__ void exponentiate(float (&scores)[kKeyFragments][4], int r,
                                               float scale_log2, float origin, float shrink) {
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < kKeyFragments; ++j) {
#pragma unroll
      for (int e = 2 * r; e < 2 * r + 2; ++e) {
        scores[j][e] = exp2_approx(scores[j][e] * scale_log2 - origin);
        sum += scores[j][e];
      }
    }
    row_sum[r] = row_sum[r] * shrink + sum;
  }

  // After the last tile: the factor that normalises row r, and its log-sum-exp (natural).
  __device__ __forceinline__ float finish(int r, float scale, float empty_lse, float& lse) const {
    float sum = row_sum[r];
    sum += __shfl_xor_sync(0xffffffff, sum, 1);
    sum += __shfl_xor_sync(0xffffffff, sum, 2);
    lse = sum == 0.0f ? empty_lse : reference[r] * scale + logf(sum);
    return sum == 0.0f ? 0.0f : 1.0f / sum;
  }
};

}  // namespace girih
