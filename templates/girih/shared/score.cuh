// The modifier that computes a score by an expression of the pattern's text.
#pragma once

#include "girih/shared/expression.cuh"
#include "girih/shared/modifiers.cuh"

namespace girih {

// Body derives from ExpressionTensors<float> and has
//   kNumTensors
//   float operator()(score, ElementIndices)
// Its numbers are the places of its tensors. Indices outside of a tensor count as the nearest
// inside, so that elements which do not exist are read as others are.
template <class Body>
struct Score {
  using Expression = Body;
  static constexpr int kNumNumbers = Body::kNumTensors;
  const int* places;
  const Geometry* geometry;
  GIRIH_HD Score(const int* numbers, const Geometry& g) : places(numbers), geometry(&g) {}
  GIRIH_HD float operator()(float score, const Place& at) const {
    return Body{{geometry->inputs, places}}(score, ElementIndices(*geometry, at.q, at.k));
  }
};

}  // namespace girih
