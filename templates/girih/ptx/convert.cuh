// Element types, conversions and the fast special functions (PTX ISA, "cvt", "ex2", "rcp").
#pragma once

#include "girih/shared/platform.cuh"

namespace girih {

// Tags: tiles hold raw 16-bit words.
struct Bf16 {
  static constexpr bool kHasExponentsOfFloat = true;
};
struct Fp16 {
  static constexpr bool kHasExponentsOfFloat = false;
};

// Two floats to one word, `lo` in its lower half; round to nearest even.
template <class Element>
__device__ __forceinline__ uint32 pack(float lo, float hi);

template <>
__device__ __forceinline__ uint32 pack<Bf16>(float lo, float hi) {
  uint32 word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(hi), "f"(lo));
  return word;
}

template <>
__device__ __forceinline__ uint32 pack<Fp16>(float lo, float hi) {
  uint32 word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(hi), "f"(lo));
  return word;
}

// The reverse, exact.
template <class Element>
__device__ __forceinline__ void unpack(uint32 word, float& lo, float& hi);

template <>
__device__ __forceinline__ void unpack<Bf16>(uint32 word, float& lo, float& hi) {
  lo = __uint_as_float(word << 16);
  hi = __uint_as_float(word & 0xffff0000u);
}

template <>
__device__ __forceinline__ void unpack<Fp16>(uint32 word, float& lo, float& hi) {
  asm("cvt.f32.f16 %0, %1;" : "=f"(lo) : "h"(static_cast<uint16>(word)));
  asm("cvt.f32.f16 %0, %1;" : "=f"(hi) : "h"(static_cast<uint16>(word >> 16)));
}

// 2^x, exact for integers; 2^-inf = 0.
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float reciprocal_approx(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace girih
