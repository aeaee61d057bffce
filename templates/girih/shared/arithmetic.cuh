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

GIRIH_HD int arithmetic_min(int a, int b) { return min(a, b); }
GIRIH_HD int arithmetic_max(int a, int b) { return max(a, b); }
GIRIH_HD int arithmetic_abs(int a) { return a < 0 ? negate(a) : a; }

// Of float32 each operation rounds by itself: a compiler would join some, and what holds on a
// border would depend on which.
#ifdef __CUDA_ARCH__
GIRIH_HD float add(float a, float b) { return __fadd_rn(a, b); }
GIRIH_HD float subtract(float a, float b) { return __fsub_rn(a, b); }
GIRIH_HD float multiply(float a, float b) { return __fmul_rn(a, b); }
GIRIH_HD float divide(float a, float b) { return __fdiv_rn(a, b); }
#else
GIRIH_HD float add(float a, float b) { return a + b; }
GIRIH_HD float subtract(float a, float b) { return a - b; }
GIRIH_HD float multiply(float a, float b) { return a * b; }
GIRIH_HD float divide(float a, float b) { return a / b; }
#endif
GIRIH_HD float negate(float a) { return -a; }

#ifdef __CUDA_ARCH__
__device__ __forceinline__ float arithmetic_min(float a, float b) { return b < a ? b : a; }
__device__ __forceinline__ float arithmetic_max(float a, float b) { return a < b ? b : a; }
__device__ __forceinline__ float arithmetic_abs(float a) { return fabsf(a); }
__device__ __forceinline__ float arithmetic_exp(float a) { return expf(a); }
__device__ __forceinline__ float arithmetic_exp2(float a) { return exp2f(a); }
__device__ __forceinline__ float arithmetic_log(float a) { return logf(a); }
__device__ __forceinline__ float arithmetic_log2(float a) { return log2f(a); }
__device__ __forceinline__ float arithmetic_sqrt(float a) { return __fsqrt_rn(a); }
__device__ __forceinline__ float arithmetic_tanh(float a) { return tanhf(a); }
// Towards zero; saturates, and NaN is 0.
__device__ __forceinline__ int to_integer(float a) { return __float2int_rz(a); }
#endif

// A tensor of a launch, whose last element lies less than 2^31 behind the first; takes the place of
// two InputViews, so that one table holds both.
struct TensorView {
  const void* data;
  int strides[4];  // in elements; 0 along dimensions of extent 1
  int extents[4];  // at least 1
  GIRIH_HD static const TensorView& at(const InputView* inputs, int place) {
    return *reinterpret_cast<const TensorView*>(inputs + place);
  }

  // Where an element lies. Indices outside of the tensor count as the nearest inside; those of the
  // dimensions in `inside`, a bit each, are inside, or the extent is 1.
  GIRIH_HD int offset(const int* indices, int rank, uint32 inside = 0) const {
    int result = 0;
    for (int i = 0; i < rank; ++i) {
      const bool safe = (inside >> i & 1) != 0;
      result += strides[i] * (safe ? indices[i] : min(max(indices[i], 0), extents[i] - 1));
    }
    return result;
  }
};
static_assert(sizeof(TensorView) <= 2 * sizeof(InputView));

}  // namespace girih
