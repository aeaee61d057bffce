// Online softmax in base 2 over accumulator fragments. A thread holds two rows of each 16-row
// fragment (r = 0, 1: rows lane / 4 and lane / 4 + 8), and four lanes share a row.
#pragma once

#include "girih/attn/mask.cuh"
#include "girih/ptx/convert.cuh"

namespace girih {

// What scores are multiplied by before the base-2 exponential. A softcap c replaces s =
// softmax_scale * score by c * tanh(s / c): scores become tanh(s / c), and c their scale. 0 is no
// softcap.
__device__ __forceinline__ float capped_scale_log2(float scale_log2, float softcap) {
  constexpr float kLog2E = 1.44269504088896341f;
  return softcap > 0.0f ? softcap * kLog2E : scale_log2;
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

// Probabilities as the A operand of a product with V: an accumulator of the scores is one, element
// for element. p: those of fragment j.
template <class Element, int kSteps>
__device__ __forceinline__ void pack_fragment(uint32 (&packed)[kSteps][4], int j,
                                              const float (&p)[4]) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    packed[j / 2][j % 2 * 2 + r] = pack<Element>(p[2 * r], p[2 * r + 1]);
  }
}

// The state of one 16-row fragment. A probability is 2^(score * scale_log2 - origin). update()
// keeps a row's origin at its highest score so far, in base 2; attn/lazy_softmax.cuh lets it lag
// behind.
struct OnlineSoftmax {
  float origin[2] = {kMinusInfinity, kMinusInfinity};  // -inf: update() has seen nothing
  float row_sum[2] = {0.0f, 0.0f};                     // this thread's part

  // Scores become probabilities. Returns, for each row, the factor by which what was accumulated
  // before must shrink, exactly 1 while the origin stays. A row that has seen nothing stays at
  // zero: -inf - (-inf) would be NaN, so its origin counts as 0.
  template <int kKeyFragments>
  __device__ __forceinline__ void update(float (&scores)[kKeyFragments][4], float scale_log2,
                                         float (&shrink)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float highest = fmaxf(origin[r], row_max(scores, r) * scale_log2);
      const float finite = highest == kMinusInfinity ? 0.0f : highest;
      shrink[r] = exp2_approx(origin[r] - finite);
      origin[r] = highest;
      row_sum[r] = row_sum[r] * shrink[r] + exponentiate_row(scores, r, scale_log2, finite);
    }
  }

  // After the last tile: the factor that normalises row r, and its log-sum-exp (natural).
  __device__ __forceinline__ float finish(int r, float empty_lse, float& lse) const {
    constexpr float kLn2 = 0.693147180559945309f;
    const float sum = quad_sum(row_sum[r]);
    lse = sum == 0.0f ? empty_lse : origin[r] * kLn2 + logf(sum);
    return sum == 0.0f ? 0.0f : reciprocal_approx(sum);
  }

  // The same where a logit without a value, natural, joins the row's sum; -inf is none. A row that
  // has seen nothing has an lse then, which is the logit.
  __device__ __forceinline__ float finish(int r, float sink_logit, float empty_lse,
                                          float& lse) const {
    constexpr float kLog2E = 1.44269504088896341f, kLn2 = 0.693147180559945309f;
    const float sum = quad_sum(row_sum[r]);
    const float own = sum == 0.0f ? kMinusInfinity : origin[r];
    const float sink = sink_logit * kLog2E;
    const float highest = fmaxf(own, sink);
    const float shrink = exp2_approx(own - highest);
    const float total = sum * shrink + exp2_approx(sink - highest);
    const bool empty = highest == kMinusInfinity;
    lse = empty ? empty_lse : highest * kLn2 + logf(total);
    return empty ? 0.0f : shrink / total;
  }

 protected:
  static __device__ __forceinline__ float quad_sum(float part) {
    part += __shfl_xor_sync(0xffffffff, part, 1);
    return part + __shfl_xor_sync(0xffffffff, part, 2);
  }

  // The highest score of row r; the same in its four lanes.
  template <int kKeyFragments>
  static __device__ __forceinline__ float row_max(const float (&scores)[kKeyFragments][4], int r) {
    float highest = fmaxf(scores[0][2 * r], scores[0][2 * r + 1]);
#pragma unroll
    for (int j = 1; j < kKeyFragments; ++j) {
      highest = fmaxf(highest, fmaxf(scores[j][2 * r], scores[j][2 * r + 1]));
    }
    highest = fmaxf(highest, __shfl_xor_sync(0xffffffff, highest, 1));
    return fmaxf(highest, __shfl_xor_sync(0xffffffff, highest, 2));
  }

  // Returns the sum of this thread's part.
  template <int kKeyFragments>
  static __device__ __forceinline__ float exponentiate_row(float (&scores)[kKeyFragments][4], int r,
                                                           float scale_log2, float finite_origin) {
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < kKeyFragments; ++j) {
#pragma unroll
      for (int e = 2 * r; e < 2 * r + 2; ++e) {
        scores[j][e] = exp2_approx(scores[j][e] * scale_log2 - finite_origin);
        sum += scores[j][e];
      }
    }
    return sum;
  }
};

}  // namespace girih
