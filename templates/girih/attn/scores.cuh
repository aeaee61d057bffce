// Scores of accumulator fragments made natural and changed by the modifiers of their head.
#pragma once

#include "girih/attn/softmax.cuh"
#include "girih/shared/modifiers.cuh"

namespace girih {

// Whether heads of these classes have natural scores: then every head of the kernel has them, and
// the softmax's scale is kNaturalScaleLog2.
template <class Classes>
constexpr bool kNaturalScores = ClassModifiers<Classes>::kScores;

constexpr float kNaturalScaleLog2 = 1.44269504088896341f;

// What scores must be multiplied by to be natural, once they are capped.
__device__ __forceinline__ float natural_scale(float softmax_scale_log2, float softcap) {
  constexpr float kLn2 = 0.693147180559945309f;
  return softcap > 0.0f ? softcap : softmax_scale_log2 * kLn2;
}

// One 16-row fragment, of which this thread has rows `row` and row + 8. key(column) is the key in a
// column; kRun, a divisor of the columns, consecutive ones are consecutive keys.
template <int kRun, int kKeyFragments, class Key>
struct FragmentModifier {
  float (&scores)[kKeyFragments][4];
  int row;
  int diagonal;  // the key at the row's position
  const Key& key;

  template <class Modifiers>
  __device__ __forceinline__ void operator()(Modifiers modifiers) const {
#pragma unroll
    for (int run = 0; run < 8 * kKeyFragments; run += kRun) {
      const int first_key = key(run) + 2 * (static_cast<int>(threadIdx.x) % 4);
      // Converted once: integers become floats at a quarter of the speed.
      const float distance = static_cast<float>(diagonal - first_key);
#pragma unroll
      for (int column = 0; column < kRun; column += 8) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int down = e / 2 * 8, along = column + e % 2;
          float& score = scores[(run + column) / 8][e];
          score = modifiers(
              score, {row + down, first_key + along, distance + static_cast<float>(down - along)});
        }
      }
    }
  }
};

// Of such a fragment. All lanes call it together.
template <class Classes, int kRun, int kKeyFragments, class Key>
__device__ __forceinline__ void modify_scores(float (&scores)[kKeyFragments][4], float scale,
                                              int head_class, const int* numbers,
                                              const Geometry& geometry, int row, const Key& key) {
#pragma unroll
  for (int j = 0; j < kKeyFragments; ++j) {
#pragma unroll
    for (int e = 0; e < 4; ++e) scores[j][e] *= scale;
  }
  ClassModifiers<Classes>::apply(
      head_class, numbers, geometry,
      FragmentModifier<kRun, kKeyFragments, Key>{scores, row, geometry.diagonal(row), key});
}

}  // namespace girih
