// What expressions of patterns compute with: C's int32 without its undefined cases, and elements of
// run-time tensors that are never read out of bounds.
#pragma once

#include "girih/shared/inputs.cuh"

namespace girih {

// Sums and products wrap.
GIRIH_HD int add(int a, int b) {
  return static_cast<int>(static_cast<uint32>(a) + static_cast<uint32>(b));
}
GIRIH_HD int subtract(int a, int b) {
  return static_cast<int>(static_cast<uint32>(a) - static_cast<uint32>(b));
}
GIRIH_HD int multiply(int a, int b) {
  return static_cast<int>(static_cast<uint32>(a) * static_cast<uint32>(b));
}
GIRIH_HD int negate(int a) { return subtract(0, a); }
// What is divided by zero is zero.
GIRIH_HD int divide(int a, int b) { return b == 0 ? 0 : b == -1 ? negate(a) : a / b; }
GIRIH_HD int remainder(int a, int b) { return b == 0 || b == -1 ? 0 : a % b; }

GIRIH_HD float add(float a, float b) { return a + b; }
GIRIH_HD float subtract(float a, float b) { return a - b; }
GIRIH_HD float multiply(float a, float b) { return a * b; }
GIRIH_HD float divide(float a, float b) { return a / b; }
GIRIH_HD float negate(float a) { return -a; }

// A tensor of a launch; takes the place of two InputViews, so that one table holds both.
struct TensorView {
  const void* data;
  int64 strides[4];  // in elements; 0 along dimensions of extent 1
  int extents[4];    // at least 1
  GIRIH_HD static const TensorView& at(const InputView* inputs, int place) {
    return *reinterpret_cast<const TensorView*>(inputs + place);
  }

  // Indices outside of the tensor count as the nearest inside.
  template <class Value, class... Indices>
  GIRIH_HD Value element(Indices... indices) const {
    int64 offset = 0;
    int dimension = 0;
    ((offset += strides[dimension] * min(max(indices, 0), extents[dimension] - 1), ++dimension),
     ...);
    return static_cast<const Value*>(data)[offset];
  }
};
static_assert(sizeof(TensorView) <= 2 * sizeof(InputView));

}  // namespace girih
