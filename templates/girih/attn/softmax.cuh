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
// for element.
template <class Element, int kKeyFragments>
__device__ __forceinline__ void pack_probabilities(uint32 (&packed)[kKeyFragments / 2][4],
                                                   const float (&p)[kKeyFragments][4]) {
#pragma unroll
  for (int j = 0; j < kKeyFragments / 2; ++j) {
    packed[j][0] = pack<Element>(p[2 * j][0], p[2 * j][1]);
    packed[j][1] = pack<Element>(p[2 * j][2], p[2 * j][3]);
    packed[j][2] = pack<Element>(p[2 * j + 1][0], p[2 * j + 1][1]);
    packed[j][3] = pack<Element>(p[2 * j + 1][2], p[2 * j + 1][3]);
  }
}

// The state of one 16-row fragment. A probability is 2^(score * scale_log2 - origin), where a row's
// origin is its highest score so far, in base 2.
struct OnlineSoftmax {
  float origin[2] = {kMinusInfinity, kMinusInfinity};  // -inf: has seen nothing
  float row_sum[2] = {0.0f, 0.0f};                     // this thread's part

  // Scores become probabilities. Returns, for each row, the factor by which what was accumulated
  // before must shrink, exactly 1 while the origin stays. A row that has seen nothing stays at
  // zero: -inf - (-inf) would be NaN, so its origin counts as 0.
  template <int kKeyFragments>
  __device__ __forceinline__ void update(float (&scores)[kKeyFragments][4], float scale_log2,
                                         float (&shrink)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float highest = fmaxf(origin[r], row_max<0, kKeyFragments>(scores, r) * scale_log2);
      const float finite = highest == kMinusInfinity ? 0.0f : highest;
      shrink[r] = exp2_approx(origin[r] - finite);
      origin[r] = highest;
      row_sum[r] = row_sum[r] * shrink[r] + exponentiate(scores, r, scale_log2, finite);
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

  // The highest score of row r in some of the fragments; the same in its four lanes.
  template <int kFirst, int kEnd, int kKeyFragments>
  static __device__ __forceinline__ float row_max(const float (&scores)[kKeyFragments][4], int r) {
    float highest = fmaxf(scores[kFirst][2 * r], scores[kFirst][2 * r + 1]);
#pragma unroll
    for (int j = kFirst + 1; j < kEnd; ++j) {
      highest = fmaxf(highest, fmaxf(scores[j][2 * r], scores[j][2 * r + 1]));
    }
    highest = fmaxf(highest, __shfl_xor_sync(0xffffffff, highest, 1));
    return fmaxf(highest, __shfl_xor_sync(0xffffffff, highest, 2));
  }

  // Returns the sum of this thread's part.
  template <int kKeyFragments>
  static __device__ __forceinline__ float exponentiate(float (&scores)[kKeyFragments][4], int r,
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

// The same with a shorter way from the last score to the first exponential: an origin stays until a
// score exceeds it by more than kHeadroom, which after the first tiles is rare. So nobody needs the
// highest score, only to know that none is above, and of the keys' second half not before the
// exponentials of the first are under way. fp16 probabilities stay far from overflow.
//
// A tile of which a row sees nothing changes no bit of the row's state, so that results do not
// depend on which such tiles are visited.
struct LazySoftmax : OnlineSoftmax {
  static constexpr float kHeadroom = 8.0f;  // 2^8

  // What a score may exceed its origin by: -inf while a row of this thread has seen nothing, whose
  // origin is 0.
  float limit;

  // Before the first tile.
  __device__ __forceinline__ void reset() {
    origin[0] = origin[1] = 0.0f;
    row_sum[0] = row_sum[1] = 0.0f;
    limit = kMinusInfinity;
  }

  // Of the first tile.
  template <int kKeyFragments>
  __device__ __forceinline__ void start(float (&scores)[kKeyFragments][4], float scale_log2) {
    reset();
    float shrink[2];
    update<true>(scores, scale_log2, shrink);
  }

  template <bool kFirstTile = false, int kKeyFragments>
  __device__ __forceinline__ void update(float (&scores)[kKeyFragments][4], float scale_log2,
                                         float (&shrink)[2]) {
    constexpr int kHalf = kKeyFragments / 2;
    float sum[2] = {0.0f, 0.0f};
    shrink[0] = shrink[1] = 1.0f;
    relate<0, kHalf>(scores, scale_log2);
    if (kFirstTile || exceeds<0, kHalf>(scores)) {
      float highest[2];  // of the whole tile
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        highest[r] = fmaxf(row_max<0, kHalf>(scores, r),
                           row_max<kHalf, kKeyFragments>(scores, r) * scale_log2 - origin[r]);
      }
      follow<0, kHalf, kFirstTile>(scores, highest, sum, shrink);
    }
    relate<kHalf, kKeyFragments>(scores, scale_log2);
    exponentiate_related<0, kHalf>(scores, sum);
    if (!kFirstTile && exceeds<kHalf, kKeyFragments>(scores)) {
      const float highest[2] = {row_max<kHalf, kKeyFragments>(scores, 0),
                                row_max<kHalf, kKeyFragments>(scores, 1)};
      float more[2] = {1.0f, 1.0f};
      follow<kHalf, kKeyFragments>(scores, highest, sum, more);
#pragma unroll
      for (int j = 0; j < kHalf; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) scores[j][e] *= more[e / 2];
      }
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        sum[r] *= more[r];
        shrink[r] *= more[r];
      }
    }
    exponentiate_related<kHalf, kKeyFragments>(scores, sum);
#pragma unroll
    for (int r = 0; r < 2; ++r) row_sum[r] = row_sum[r] * shrink[r] + sum[r];
  }

  // Whether the origin of some row of the warp moved; known only when all probabilities are, for
  // sums are never negative.
  __device__ __forceinline__ bool moved(const float (&shrink)[2]) const {
    return __any_sync(0xffffffff, shrink[0] != 1.0f || shrink[1] != 1.0f || row_sum[0] < 0.0f ||
                                      row_sum[1] < 0.0f);
  }

 private:
  template <int kFirst, int kEnd, int kKeyFragments>
  __device__ __forceinline__ void relate(float (&scores)[kKeyFragments][4],
                                         float scale_log2) const {
#pragma unroll
    for (int j = kFirst; j < kEnd; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) scores[j][e] = scores[j][e] * scale_log2 - origin[e / 2];
    }
  }

  // Whether some related score of the warp is above the limit. As integers, which three at a time
  // are compared as fast as two, floats have the highest of all where it is positive, else some
  // negative one.
  template <int kFirst, int kEnd, int kKeyFragments>
  __device__ __forceinline__ bool exceeds(const float (&scores)[kKeyFragments][4]) const {
    int highest[4];
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      highest[e] = __float_as_int(scores[kFirst][e]);
#pragma unroll
      for (int j = kFirst + 1; j < kEnd; ++j) {
        highest[e] = max(highest[e], __float_as_int(scores[j][e]));
      }
    }
    const int of_all = max(max(highest[0], highest[1]), max(highest[2], highest[3]));
    return __any_sync(0xffffffff, !(__int_as_float(of_all) < limit));
  }

  // Moves origins to the highest related scores that exceed them too far, and these fragments with
  // them. `sum`: of the tile so far.
  template <int kFirst, int kEnd, bool kFirstTile = false, int kKeyFragments>
  __device__ __forceinline__ void follow(float (&scores)[kKeyFragments][4],
                                         const float (&highest)[2], const float (&sum)[2],
                                         float (&shrink)[2]) {
    limit = kHeadroom;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const bool seen = !kFirstTile && quad_sum(row_sum[r] + sum[r]) > 0.0f;
      const float before = origin[r];
      if (seen ? highest[r] > kHeadroom : highest[r] > kMinusInfinity) origin[r] += highest[r];
      const float step = origin[r] - before;
      shrink[r] = seen ? exp2_approx(-step) : 1.0f;
      if (!seen && highest[r] == kMinusInfinity) limit = kMinusInfinity;
#pragma unroll
      for (int j = kFirst; j < kEnd; ++j) {
        scores[j][2 * r] -= step;
        scores[j][2 * r + 1] -= step;
      }
    }
  }

  template <int kFirst, int kEnd, int kKeyFragments>
  static __device__ __forceinline__ void exponentiate_related(float (&scores)[kKeyFragments][4],
                                                              float (&sum)[2]) {
#pragma unroll
    for (int j = kFirst; j < kEnd; ++j) {
#pragma unroll
      for (int e = 0; e < 4; ++e) scores[j][e] = exp2_approx(scores[j][e]);
#pragma unroll
      for (int r = 0; r < 2; ++r) sum[r] += scores[j][2 * r] + scores[j][2 * r + 1];
    }
  }
};

}  // namespace girih
