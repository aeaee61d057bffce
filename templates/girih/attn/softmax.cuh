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

// The state of one 16-row fragment.
struct OnlineSoftmax {
  float row_max[2] = {kMinusInfinity, kMinusInfinity};  // of the scores, before scaling
  float row_sum[2] = {0.0f, 0.0f};                      // this thread's part

  // Scores become probabilities relative to the new maxima. Returns, for each row, the factor by
  // which what was accumulated before must shrink. A row that has seen nothing stays at zero:
  // -inf - (-inf) would be NaN, so its maximum counts as zero.
  template <int kKeyFragments>
  __device__ __forceinline__ void update(float (&scores)[kKeyFragments][4], float scale_log2,
                                         float (&shrink)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float highest = row_max[r];
#pragma unroll
      for (int j = 0; j < kKeyFragments; ++j) {
        highest = fmaxf(highest, fmaxf(scores[j][2 * r], scores[j][2 * r + 1]));
      }
      highest = fmaxf(highest, __shfl_xor_sync(0xffffffff, highest, 1));
      highest = fmaxf(highest, __shfl_xor_sync(0xffffffff, highest, 2));

      // The difference is exactly 0 while the maximum stays: an exponent of rounded products would
      // shrink a little at every tile.
      const float finite = highest == kMinusInfinity ? 0.0f : highest;
      const float origin = finite * scale_log2;
      shrink[r] = exp2_approx((row_max[r] - finite) * scale_log2);
      row_max[r] = highest;
      float sum = 0.0f;
#pragma unroll
      for (int j = 0; j < kKeyFragments; ++j) {
#pragma unroll
        for (int e = 2 * r; e < 2 * r + 2; ++e) {
          scores[j][e] = exp2_approx(scores[j][e] * scale_log2 - origin);
          sum += scores[j][e];
        }
      }
      row_sum[r] = row_sum[r] * shrink[r] + sum;
    }
  }

  // After the last tile: the factor that normalises row r, and its log-sum-exp (natural).
  __device__ __forceinline__ float finish(int r, float scale, float empty_lse, float& lse) {
    float sum = row_sum[r];
    sum += __shfl_xor_sync(0xffffffff, sum, 1);
    sum += __shfl_xor_sync(0xffffffff, sum, 2);
    lse = sum == 0.0f ? empty_lse : row_max[r] * scale + logf(sum);
    return sum == 0.0f ? 0.0f : 1.0f / sum;
  }
};

}  // namespace girih
